"""Biased relaxations of Bernoulli and one-hot variables: differentiate f in z, and give z a
derivative that it does not have.

One mechanism: a soft vector s(logits, noise) close to the hard draw e. z is s itself, or e with the
derivative of s; the methods differ in s alone. A Bernoulli site is a pair of classes with logits
(0, eta).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.rules.base import evaluate, no_aux, rule
from vijax.rules.discrete import site_logits, spare_key
from vijax.types import Array, Family, Key, PyTree, Requirements, Rule, Sample, Scalar

Soft = Callable[[Key, Array, Array, Array], Array]
"""(key, logits [..., C], noise [..., C], hard [..., C]) -> soft [..., C], whose derivative in the
logits is z's. `hard` is the one-hot of argmax(logits + noise), a draw of q; `key` is for further
noise.
"""


def gumbel_softmax(temperature: float) -> Rule:
    """Biased: z is softmax((logits + Gumbel) / temperature), no draw of q but a relaxed one.
    Concrete, Gumbel-softmax.

    Jang et al. 2017; Maddison et al. 2017, with log q extended linearly to soft z (Jang's), not the
    Concrete density. The value is that of the relaxed bound, in no order to the bound itself.

    Unbiased for: the gradient of the relaxed bound E[objective(log_w)] at soft z, any objective, in
                  theta and phi.
    Requires:     Bernoulli or one-hot categorical sites with logits; an integrand differentiable in
                  z, defined at soft z.
    State:        none; temperature is fixed, in (0, inf), often 0.5 to 1.
    Cost:         K evaluations of the integrand per datum, one backward pass in z.
    """
    _check_temperature("gumbel_softmax", temperature)

    def soft(key: Key, logits: Array, noise: Array, hard: Array) -> Array:
        return jax.nn.softmax((logits + noise) / temperature)

    return _relaxed(
        f"gumbel_softmax({temperature})",
        soft,
        hard=False,
        paper="Jang et al. 2017; Maddison et al. 2017",
    )


def straight_through(temperature: float = 1.0) -> Rule:
    """Biased: z is a draw of q, its derivative that of the mean softmax(logits / temperature).
    Bengio et al. 2013.

    Unbiased for: phi where the integrand is affine in z, at temperature 1; theta always, for any
                  objective.
    Requires:     Bernoulli or one-hot categorical sites with logits; an integrand differentiable in
                  z, at hard z only.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass in z.
    """
    _check_temperature("straight_through", temperature)

    def soft(key: Key, logits: Array, noise: Array, hard: Array) -> Array:
        return jax.nn.softmax(logits / temperature)

    return _relaxed(f"straight_through({temperature})", soft, hard=True, paper="Bengio et al. 2013")


def straight_through_gumbel(temperature: float) -> Rule:
    """Biased: z is a draw of q, its derivative that of softmax((logits + Gumbel) / temperature),
    same noise. Jang et al. 2017.

    Unbiased for: theta, for any objective; phi has a bias at every temperature.
    Requires:     Bernoulli or one-hot categorical sites with logits; an integrand differentiable in
                  z, at hard z only.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass in z.
    """
    _check_temperature("straight_through_gumbel", temperature)

    def soft(key: Key, logits: Array, noise: Array, hard: Array) -> Array:
        return jax.nn.softmax((logits + noise) / temperature)

    return _relaxed(
        f"straight_through_gumbel({temperature})", soft, hard=True, paper="Jang et al. 2017"
    )


def gumbel_rao(temperature: float, num_conditional: int = 10) -> Rule:
    """Biased: `straight_through_gumbel` with its derivative averaged over further noise given the
    draw. Paulus et al. 2021.

    The same mean, hence the same bias, and a lower variance. No derivative flows through the
    conditional draw itself.

    Args:
      num_conditional: R, noise vectors per draw.

    Unbiased for: theta, for any objective; phi has a bias at every temperature.
    Requires:     Bernoulli or one-hot categorical sites with logits; an integrand differentiable in
                  z, at hard z only.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass in z, R softmaxes per
                  sample.
    """
    _check_temperature("gumbel_rao", temperature)
    if not isinstance(num_conditional, int) or num_conditional < 1:
        raise ValueError(
            f"gumbel_rao(num_conditional={num_conditional!r}): give an int of at least 1."
        )

    def soft(key: Key, logits: Array, noise: Array, hard: Array) -> Array:
        stopped = jax.lax.stop_gradient(logits)
        perturbed = jax.vmap(lambda k: perturbed_given(k, stopped, hard))(
            jax.random.split(key, num_conditional)
        )
        moved = logits[None] + (perturbed - stopped[None])
        return jnp.mean(jax.nn.softmax(moved / temperature), axis=0)

    return _relaxed(
        f"gumbel_rao({temperature}, {num_conditional})", soft, hard=True, paper="Paulus et al. 2021"
    )


def gapped_straight_through(temperature: float, gap: float | None = 1.0) -> Rule:
    """Biased: z is a draw of q, its derivative that of a softmax of logits moved, without noise, to
    agree with the draw.

    Fan et al. 2022: the chosen logit is raised to the largest, the others are lowered until they
    lie `gap` below it.

    Args:
      gap: positive; None for -log(1 - q_e) / q_e, the mean gap of Gumbel-perturbed logits given
        that class e won.

    Unbiased for: theta, for any objective; phi has a bias at every temperature.
    Requires:     Bernoulli or one-hot categorical sites with logits; an integrand differentiable in
                  z, at hard z only.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass in z.
    """
    _check_temperature("gapped_straight_through", temperature)
    if gap is not None and not (math.isfinite(gap) and gap > 0.0):
        raise ValueError(
            f"gapped_straight_through(gap={gap}): the gap must be positive and finite, or None."
        )

    def soft(key: Key, logits: Array, noise: Array, hard: Array) -> Array:
        stopped = jax.lax.stop_gradient(logits)
        distance = mean_gap(stopped, hard) if gap is None else gap
        below = stopped - jnp.max(stopped, axis=-1, keepdims=True)
        move = jnp.where(hard > 0.0, -below, -jnp.maximum(below + distance, 0.0))
        return jax.nn.softmax((logits + move) / temperature)

    return _relaxed(
        f"gapped_straight_through({temperature}, {gap})", soft, hard=True, paper="Fan et al. 2022"
    )


def reinmax(temperature: float = 1.0) -> Rule:
    """Biased: z is a draw of q, its derivative Heun's second-order rule 2 J((q_temperature + e) /
    2) - J(q) / 2.

    Liu et al. 2023, algorithm 2; J(p) = diag(p) - p p^T. The paper takes temperatures of at least
    1.

    Unbiased for: phi where the integrand is quadratic in z, at temperature 1; theta always, for any
                  objective.
    Requires:     Bernoulli or one-hot categorical sites with logits; an integrand differentiable in
                  z, at hard z only.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass in z.
    """
    _check_temperature("reinmax", temperature)

    def soft(key: Key, logits: Array, noise: Array, hard: Array) -> Array:
        middle = 0.5 * (jax.nn.softmax(logits / temperature) + hard)
        at_middle = jax.nn.softmax(jax.lax.stop_gradient(jnp.log(middle) - logits) + logits)
        return 2.0 * at_middle - 0.5 * jax.nn.softmax(logits)

    return _relaxed(f"reinmax({temperature})", soft, hard=True, paper="Liu et al. 2023")


def _relaxed(name: str, soft: Soft, *, hard: bool, paper: str) -> Rule:
    """The rule whose z is soft(...), or with `hard` a draw of q that has the derivative of
    soft(...).
    """

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        # As in `draw`: the same key gives the same hard draws
        noise_key, inner_key = jax.random.split(key)
        logits = class_logits(family, lam)
        noise = class_noise(noise_key, family, lam, num_samples)

        def one(key: Key, noise: Array) -> Array:
            chosen = jax.nn.one_hot(
                jnp.argmax(logits + noise, axis=-1), logits.shape[-1], dtype=logits.dtype
            )
            relaxed = soft(key, logits, noise, chosen)
            return from_classes(
                family, chosen + (relaxed - jax.lax.stop_gradient(relaxed)) if hard else relaxed
            )

        z = jax.vmap(one)(jax.random.split(spare_key(key), num_samples), noise)
        keys = jax.random.split(inner_key, num_samples)
        log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, z)
        log_w, slope, aux = jax.jvp(
            lambda log_q: evaluate(integrand, Sample(z, log_q, keys)),
            (log_q,),
            (jnp.ones_like(log_q),),
            has_aux=True,
        )
        value = objective(log_w)
        return value - _direct(family, lam, z, slope) if hard else value, no_aux(aux)

    requires = Requirements(
        bernoulli=True,
        categorical=True,
        differentiates_z=True,
        samplewise=not hard,
        unbiased=False,
        paper=paper,
        advice="Write pathwise() where there is a differentiable sampler, or score().",
    )
    return rule(name, requires, surrogate)


def _direct(family: Family, lam: PyTree, z: Array, slope: Array) -> Scalar:
    """Zero, with the derivative mean_k slope_k dlog q(z_k), z fixed: mean zero at draws of q, so
    taken off.

    It cancels a linear objective's direct dependence on log q and leaves a non-linear one the part
    that it needs.
    """
    log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, jax.lax.stop_gradient(z))
    return jnp.mean(jax.lax.stop_gradient(slope) * (log_q - jax.lax.stop_gradient(log_q)))


def class_logits(family: Family, lam: PyTree) -> Array:
    """Logits [..., C]; a Bernoulli vector is [D, 2] with logits 0 and eta."""
    logits = site_logits(family, lam)
    return (
        logits
        if family.bernoulli_logits is None
        else jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    )


def class_noise(key: Key, family: Family, lam: PyTree, num_samples: int) -> Array:
    """Noise [K, ..., C] for which argmax(logits + noise) is a draw of q: Gumbel, up to a constant
    per site.
    """
    shape = (num_samples, *site_logits(family, lam).shape)
    if family.bernoulli_logits is None:
        return jax.random.gumbel(key, shape)
    uniform = jax.random.uniform(key, shape)
    logistic = jnp.log1p(-uniform) - jnp.log(jnp.maximum(uniform, jnp.finfo(uniform.dtype).tiny))
    return jnp.stack([jnp.zeros_like(logistic), logistic], axis=-1)


def from_classes(family: Family, soft: Array) -> Array:
    """The latent out of class weights [..., C]: themselves, or the weight of 1 for a Bernoulli
    vector.
    """
    return soft if family.bernoulli_logits is None else soft[..., 1]


def perturbed_given(key: Key, logits: Array, hard: Array) -> Array:
    """Gumbel-perturbed logits [..., C] given which one is the largest. Paulus et al. 2021, eq. 15;
    Maddison et al. 2014.

    The largest is a Gumbel at logsumexp(logits) whichever it is; the others are Gumbels cut off
    there.
    """
    top_key, rest_key = jax.random.split(key)
    top = jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jax.random.gumbel(
        top_key, (*logits.shape[:-1], 1)
    )
    others = -jnp.logaddexp(-jax.random.gumbel(rest_key, logits.shape) - logits, -top)
    return jnp.where(hard > 0.0, top, others)


def mean_gap(logits: Array, hard: Array) -> Array:
    """[..., 1] mean distance from the largest to the next Gumbel-perturbed logit, given the winner:
    -log(1 - q) / q.

    Fan et al. 2022, section 4; it tends to 1 as q does to 0.
    """
    log_probs = jax.nn.log_softmax(logits)
    log_rest = jax.nn.logsumexp(jnp.where(hard > 0.0, -jnp.inf, log_probs), axis=-1, keepdims=True)
    prob = jnp.sum(hard * jnp.exp(log_probs), axis=-1, keepdims=True)
    return jnp.where(prob > 1e-3, -log_rest / jnp.maximum(prob, 1e-3), 1.0 + 0.5 * prob)


def _check_temperature(name: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(
            f"{name}(temperature={temperature}): the temperature must be positive and finite."
        )
