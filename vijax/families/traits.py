"""Traits: what a family may be able to do beyond drawing, each a small record keyed by its type.

`family.traits.get(Entropy)` is the record or None. A rule lists the types that it needs. With the
type stand the clause that completes "this rule on that family: ..." when it is missing, `refusal`,
and, where it says what kind of latent this is, the word for that in the table of rules, `label`. A
new trait is a class here and a record in the family that has it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vijax.types import Array, Family, Key, PyTree, Scalar

MAX_SUPPORT = 2**16


class Reparameterized(NamedTuple):
    """`transport` is differentiable in lam with the right derivative."""

    label = "reparameterized"
    refusal = (
        "it has no differentiable sampler (no Reparameterized trait), so the path from q's "
        "parameters through z would silently carry a zero gradient"
    )


class Density(NamedTuple):
    """`log_prob(lam, z)` is known at any z of the support, not only at the family's own draws."""

    refusal = (
        "its density is known only at its own draws (no Density trait), but this rule evaluates "
        "log q at a given z with parameters of its own choice"
    )


class Entropy(NamedTuple):
    """Differential or discrete entropy, exact.

    Attributes:
      value: lam -> [] nats.
    """

    value: Callable[[PyTree], Scalar]
    refusal = "the family has no closed-form entropy"


class Kl(NamedTuple):
    """Kullback-Leibler divergence between two members, exact.

    Attributes:
      value: (lam, lam2) -> [] nats, KL(q(lam) || q(lam2)).
    """

    value: Callable[[PyTree, PyTree], Scalar]
    refusal = "the family has no closed-form KL divergence"


class Moments(NamedTuple):
    """Mean and variance of every element of z.

    Attributes:
      mean: lam -> tree like z.
      variance: lam -> tree like z.
    """

    mean: Callable[[PyTree], PyTree]
    variance: Callable[[PyTree], PyTree]
    refusal = "its mean and variance have no known closed form"


class FiniteSupport(NamedTuple):
    """Every value of z; attached through `finite_support`, which leaves large ones out.

    Attributes:
      values: () -> leaves [S, ...].
      size: S, at most MAX_SUPPORT.
    """

    values: Callable[[], PyTree]
    size: int
    label = "finite support"
    refusal = (
        f"its support has infinitely many points, or more than the {MAX_SUPPORT} that can be summed"
    )


def finite_support(values: Callable[[], PyTree], size: int) -> FiniteSupport | None:
    """The trait, if the support is small enough to be summed."""
    return FiniteSupport(values, size) if size <= MAX_SUPPORT else None


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


class Blocks(NamedTuple):
    """z and lam are dicts of named parts.

    Attributes:
      families: of the parts, in the order in which they are drawn.
      lam: (block, lam, z of the blocks before it) -> the block's lam.
      ordered: do later parts depend on earlier ones?
    """

    families: Mapping[str, Family]
    lam: Callable[[str, PyTree, PyTree], PyTree]
    ordered: bool
    refusal = "it has no named blocks"


class IndependentBlocks(NamedTuple):
    """The blocks are independent of each other: a `families.product`."""

    label = "product"
    refusal = (
        "it is no product of independent named blocks, one of which could be credited without the "
        "others"
    )


class Inverse(NamedTuple):
    """The noise behind a draw.

    Attributes:
      noise: (lam, z) -> the noise that `transport` takes to z.
    """

    noise: Callable[[PyTree, PyTree], PyTree]
    refusal = "its sampler has no known inverse, so no noise is known for a given z"


class UniformNoise(NamedTuple):
    """The noise of one sample as a function of uniform numbers: what antithetic and quasi-Monte
    Carlo draws need.

    Attributes:
      num_uniforms: U.
      from_uniform: u [U] in (0, 1) -> the noise of one sample, by inverse CDFs.
    """

    num_uniforms: int
    from_uniform: Callable[[Array], PyTree]
    refusal = "its noise is no known function of uniform numbers (no UniformNoise trait)"


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
        "it is not normal with known mean and covariance, over which this rule integrates a "
        "quadratic function"
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


class Natural(NamedTuple):
    """Steps along the natural gradient of an exponential family: eta + rate dL/dmu, eta its natural
    and mu its mean parameters, which is the gradient times the inverse Fisher information.
    Khan and Nielsen 2018.

    Attributes:
      step: (lam, dL/dlam, rate []) -> lam after the step. Where a step would leave the family (a
        precision below 0), it is cut short.
    """

    step: Callable[[PyTree, PyTree, Scalar], PyTree]
    refusal = "no natural-gradient step is known for it"
