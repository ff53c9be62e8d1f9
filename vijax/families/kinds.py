"""Traits that say what kind of distribution q is: some rules have formulas for one kind alone.

As in `vijax.families.traits`, `refusal` completes "this rule on that family: ...", and `label` is
the latent's name in the table of rules.
"""

from collections.abc import Callable
from typing import NamedTuple

from vijax.types import Array, Key, PyTree


class BernoulliSites(NamedTuple):
    """z is in {0, 1}^D, its elements independent.

    Attributes:
      logits: lam -> [D].
    """

    logits: Callable[[PyTree], Array]
    label = "Bernoulli"
    refusal = "it is no vector of independent Bernoulli variables with logits"


class CategoricalSites(NamedTuple):
    """z is one-hot over its last axis, sites independent.

    Attributes:
      logits: lam -> [..., C].
    """

    logits: Callable[[PyTree], Array]
    label = "categorical"
    refusal = "it is no vector of one-hot categorical variables with logits"


class NormalMoments(NamedTuple):
    """z [D] is normal.

    Attributes:
      mean: lam -> [D].
      covariance: lam -> [D, D].
    """

    mean: Callable[[PyTree], Array]
    covariance: Callable[[PyTree], Array]
    label = "normal"
    refusal = (
        "it is not normal, a vector z with known mean and covariance, over which this rule "
        "integrates a quadratic function"
    )


class GammaSites(NamedTuple):
    """z [D] are independent gamma variables.

    Attributes:
      shape: lam -> [D].
      rate: lam -> [D].
    """

    shape: Callable[[PyTree], Array]
    rate: Callable[[PyTree], Array]
    label = "gamma"
    refusal = (
        "it is not a vector of independent gamma variables, for which this rule's transformation "
        "is made"
    )


class Pairs(NamedTuple):
    """dE_q[f]/dlam = E[scale (f(plus) - f(minus))], one pair of points per number in lam.

    Attributes:
      plus: {"leaf of lam": z}, leaves [*shape of lam's leaf, *shape of z].
      minus: likewise.
      scale: leaves of lam's shapes.
    """

    plus: PyTree
    minus: PyTree
    scale: PyTree


class WeakDerivative(NamedTuple):
    """The derivative of q's density as a difference of two densities.

    Attributes:
      pairs: (key, lam, a draw z) -> Pairs.
    """

    pairs: Callable[[Key, PyTree, PyTree], Pairs]
    label = "weak derivative"
    refusal = "no decomposition of its derivative into a difference of two measures is known"
