"""Traits: what a model may be able to do beyond its log-joint, each a small record keyed by its
type, as in `vijax.families.traits`; `refusal` completes "this algorithm on that model: ...".
"""

from collections.abc import Callable
from typing import NamedTuple

from vijax.types import PyTree, Q, Scalar


class SufficientStatistics(NamedTuple):
    """A model with local latents alone, whose log p(z, x | theta) is an exponential family in s(z,
    x): the best theta given q is a function of the mean of E_q[s] over the data.

    Attributes:
      statistics: (q of z, x) -> tree, E_q[s(z, x)] of one datum; q's mean is
        `families.mean(q.family, q.lam)`.
      maximize: (theta, their mean over the data) -> theta, the M-step. What they say nothing of (a
        component that has no data) stays as it is in the theta given.
      expected: theta -> tree, the mean of s(z, x) over data that theta draws, from which `maximize`
        makes the same theta again: `testing.check_model` asks.
    """

    statistics: Callable[[Q, PyTree], PyTree]
    maximize: Callable[[PyTree, PyTree], PyTree]
    expected: Callable[[PyTree], PyTree]
    refusal = "its M-step is not known in closed form (no SufficientStatistics trait)"


class Conditionals(NamedTuple):
    """A model with global and local latents, conjugate given each other: the best factor of each
    given q of the others is known. Hoffman et al. 2013, section 2.

    Attributes:
      local: (theta, lam of w, x) -> lam of the best q(z_i).
      statistics: (q of z, x) -> tree, what a datum adds to the natural parameters of q(w).
      update: (theta, lam of w, mean of the statistics over the data, N) -> lam of w: one pass over
        the blocks of w, each the best one given the others.
      implied: (theta, lam of w, N) -> the mean statistics from which `update` makes that lam, be
        there data with such or not.
      bound: (theta, lam of w, q of z, x) -> [] nats, E_q[log p(z, x | w) - log q(z)] of one datum.
    """

    local: Callable[[PyTree, PyTree, PyTree], PyTree]
    statistics: Callable[[Q, PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree, int], PyTree]
    implied: Callable[[PyTree, PyTree, int], PyTree]
    bound: Callable[[PyTree, PyTree, Q, PyTree], Scalar]
    refusal = "its complete conditionals are not known (no Conditionals trait)"
