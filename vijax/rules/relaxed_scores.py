"""A discrete draw as a function of continuous scores, and the relaxations that read a soft z off
them; no rules live here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.families import BernoulliSites
from vijax.types import Array, Family, Key

Relaxation = Callable[[Array, Array, Array], Array]
"""(scores, logits, temperature) -> soft logits: the relaxed z is their sigmoid or softmax."""


def concrete(scores: Array, logits: Array, temperature: Array) -> Array:
    """Scores divided by the temperature. Maddison et al. 2017; Jang et al. 2017."""
    return scores / temperature


def to_mean_field(scores: Array, logits: Array, temperature: Array) -> Array:
    """`concrete` with the logits' part tending to 1, not 0, in the limit of high temperature: REBAR
    then tends to MuProp.

    Tucker et al. 2017, section 3.3: logits (t^2 + t + 1) / (t + 1) + noise, all over t.
    """
    return scores / temperature + logits * temperature / (temperature + 1.0)


class Scores(NamedTuple):
    """A discrete draw as a function of continuous scores.

    Attributes:
      noise: (key, shape, dtype) -> noise of the scores given z
      given: (logits, hard z, noise) -> scores with that hard z, live in logits
      squash: soft logits -> relaxed z
      normal: logits -> the part of the scores that is not noise
    """

    noise: Callable[..., Array]
    given: Callable[[Array, Array, Array], Array]
    squash: Callable[[Array], Array]
    normal: Callable[[Array], Array]


def scores_of(family: Family) -> Scores:
    """Logistic scores for Bernoulli sites, Gumbel scores for categorical ones."""
    if family.traits.get(BernoulliSites) is not None:
        return Scores(jax.random.logistic, logistic_scores, jax.nn.sigmoid, lambda logits: logits)
    return Scores(jax.random.gumbel, gumbel_scores, jax.nn.softmax, jax.nn.log_softmax)


def logistic_scores(logits: Array, z: Array, noise: Array) -> Array:
    """Scores logits + logistic noise, given that 1[. > 0] is z: log(1 + v / ((1 - v) (1 - p))) for
    z = 1 and uniform v.
    """
    sign = 2.0 * z - 1.0
    return sign * jax.nn.softplus(noise + jax.nn.softplus(sign * logits))


def gumbel_scores(logits: Array, z: Array, noise: Array) -> Array:
    """log-probabilities + Gumbel noise, given that the largest is z's: -log E_b there, -log(E_i /
    pi_i + E_b) elsewhere.

    noise: minus the logs of standard exponentials E. Tucker et al. 2017, appendix C; Maddison et
    al. 2014.
    """
    top = jnp.sum(z * noise, axis=-1, keepdims=True)
    others = -jnp.logaddexp(-noise - jax.nn.log_softmax(logits), -top)
    return jnp.where(z > 0.5, top, others)


def two_scores(
    scores: Scores, logits: Array, z: Array, key: Key, given_key: Key
) -> Callable[[Array], tuple[Array, Array]]:
    """The function of eta that gives two scores [K, ...] whose hard value at eta = logits is z: eta
    plus noise that stays as it is when eta moves, and scores drawn given z, whatever eta is.

    Args:
      logits: where the noise that leads to z is worked out, no derivative flowing.
      z: [K, ...] hard.
      key: for the noise that makes the first ones.
      given_key: likewise for the second; the same key makes both equal at eta = logits.
    """
    noise, noise_given = (scores.noise(k, z.shape, logits.dtype) for k in (key, given_key))
    start = scores.normal(logits)[None]
    fixed = scores.given(start, z, noise) - start

    def at(eta: Array) -> tuple[Array, Array]:
        centre = scores.normal(eta)[None]
        return centre + fixed, scores.given(centre, z, noise_given)

    return at
