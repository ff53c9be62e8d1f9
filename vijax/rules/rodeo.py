"""Discrete Stein control variates: functions of mean zero under q, made by a Gibbs step on any
function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from vijax.families import BernoulliSites, Density
from vijax.networks import as_network
from vijax.rules.base import draw, learned_gradient, no_aux, rule, spare_key, stopped
from vijax.rules.discrete import site_logits, site_mean
from vijax.rules.double_control_variates import mean_of_others, values_and_slopes
from vijax.types import Array, Aux, Integrand, Key, PyTree, Q, Requirements, Rule, Scalar, Setting


def rodeo(network: Any = None) -> Rule:
    """Leave-one-out score function with two Stein control variates: a (A h_j)(z_j) on the baseline,
    b (A [h_k s])(z_k) on the score itself, where (A h)(z) = mean_i (E[h(z) | all but z_i] - h(z))
    has mean zero and s = z - p is the score.

    Shi et al. 2022, eq. 11-13. h_k is the mean over the other samples j of a network of (f(z_j),
    f'(z_j) . (z - z_j)), so it is evaluated at all D neighbours of a draw without a further look at
    f. a, b and the network are learned by the gradient of the variance; a = b = 0, as at first, is
    score().

    Args:
      network: [2] -> one number, a flax module or an (init, apply) pair. Default:
        `SurrogateNetwork`.

    Unbiased for: the gradient of the ELBO, in theta and phi, whatever the control's values.
    Requires:     a Bernoulli family with logits; an integrand differentiable in z at its values;
                  num_samples >= 2; a linear objective.
    State:        none; {"baseline_scale", "score_scale", "network"} are in `control`.
    Cost:         K evaluations of the integrand per datum and K derivatives in z; the network K^2
                  (D + 1) times.
    """
    net = as_network(
        SurrogateNetwork() if network is None else network,
        jax.ShapeDtypeStruct((2,), jnp.result_type(float)),
    )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        drawn = draw(key, stopped(q), setting.num_samples)
        values, slopes, aux = values_and_slopes(integrand, q, drawn.z, spare_key(key))
        live = site_logits(q.family, q.lam)
        logits = jax.lax.stop_gradient(live)
        away = drawn.z - site_mean(q.family, logits)[None]

        def gradient(control: PyTree) -> Array:
            def surrogates(inputs: Array) -> Array:
                return jnp.reshape(net.apply(control["network"], inputs), ())

            at, flipped = leave_one_out_surrogates(surrogates, drawn.z, values, slopes)
            stein, stein_score = gibbs_steps(logits, drawn.z, away, at, flipped)
            others = mean_of_others(values + control["baseline_scale"] * stein)
            scored = jnp.tensordot(values - others, away, axes=1) / setting.num_samples
            return scored + control["score_scale"] * jnp.mean(stein_score, axis=0)

        value = setting.objective.value(values)
        return learned_gradient(value, live, setting.control, gradient), no_aux(aux)

    requires = Requirements(
        needs=(BernoulliSites, Density),
        linear=True,
        min_samples=2,
        paper="Shi et al. 2022",
        advice="Write score(), local_expectation() or double_control_variates() instead.",
    )

    def init(key: Key) -> PyTree:
        zero = jnp.zeros(())
        return {"baseline_scale": zero, "score_scale": zero, "network": net.init(key)}

    return rule("rodeo()", requires, surrogate, init=init)


class SurrogateNetwork(linen.Module):
    """(f(z_j), f'(z_j) . (z - z_j)) -> their sum, the Taylor expansion, plus one hidden layer that
    is silent at first.
    """

    width: int = 16

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """One number for two, in nats."""
        # asinh: the integrand may be hundreds of nats, where tanh units are dead.
        hidden = jnp.tanh(linen.Dense(self.width)(jnp.arcsinh(inputs)))
        return jnp.sum(inputs) + linen.Dense(1, kernel_init=linen.initializers.zeros)(hidden)[0]


def leave_one_out_surrogates(
    surrogate: Callable[[Array], Scalar], z: Array, values: Array, slopes: Array
) -> tuple[Array, Array]:
    """h_k at z_k [K] and at z_k with each coordinate flipped [K, D]; h_k is built from the samples
    other than k alone.
    """
    num_samples = z.shape[0]
    away = jnp.einsum("kjd,jd->kj", z[:, None] - z[None, :], slopes)  # f'(z_j) . (z_k - z_j)
    # [K, K, D] what flipping coordinate d of z_k adds to it
    flip = slopes[None, :] * (1.0 - 2.0 * z)[:, None]
    both = jnp.concatenate([away[:, :, None], away[:, :, None] + flip], axis=2)  # [K, K, 1 + D]
    inputs = jnp.stack([jnp.broadcast_to(values[None, :, None], both.shape), both], axis=-1)
    h = jax.vmap(jax.vmap(jax.vmap(surrogate)))(inputs)
    others = (1.0 - jnp.eye(num_samples, dtype=h.dtype)) / (num_samples - 1)
    h = jnp.einsum("kj,kjd->kd", others, h)
    return h[:, 0], h[:, 1:]


def gibbs_steps(
    logits: Array, z: Array, score: Array, at: Array, flipped: Array
) -> tuple[Array, Array]:
    """(A h)(z) [K] and (A [h s])(z) [K, D] from h at z [K] and at its neighbours [K, D]; s = z
    - p.
    """
    sign = 1.0 - 2.0 * z
    chance = jax.nn.sigmoid(sign * logits[None]) / z.shape[1]  # of the flipped value, a D-th of it
    stein = jnp.sum(chance * (flipped - at[:, None]), axis=1)
    # Flipping coordinate i changes s in coordinate i alone, by 1 - 2 z_i.
    return stein, score * stein[:, None] + chance * flipped * sign
