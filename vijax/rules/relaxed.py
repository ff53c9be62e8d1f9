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

from vijax.families import BernoulliSites, CategoricalSites, Density, log_probs
from vijax.rules.base import (
    keys,
    live_weights,
    minus_direct_term,
    no_aux,
    rule,
    spare_key,
    zero_valued,
)
from vijax.rules.discrete import class_logits, class_noise, from_classes
from vijax.rules.perturbed_logits import mean_gap, perturbed_given
from vijax.types import Array, Aux, Integrand, Key, Q, Requirements, Rule, Sample, Scalar, Setting

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

    return _through_soft_classes(
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

    return _through_soft_classes(
        f"straight_through({temperature})", soft, hard=True, paper="Bengio et al. 2013"
    )


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

    return _through_soft_classes(
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
    Cost:         K evaluations of the integrand per datum, one backward pass in z, K R softmaxes.

    Raises:
      ValueError: if the temperature or num_conditional is not positive.
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

    return _through_soft_classes(
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

    Raises:
      ValueError: if the temperature or the gap is not positive and finite.
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

    return _through_soft_classes(
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

    return _through_soft_classes(
        f"reinmax({temperature})", soft, hard=True, paper="Liu et al. 2023"
    )


def _through_soft_classes(name: str, soft: Soft, *, hard: bool, paper: str) -> Rule:
    """The rule whose z is soft(...), or with `hard` a draw of q that has the derivative of
    soft(...).
    """

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        family, num_samples = q.family, setting.num_samples
        noise_key, inner_keys = keys(key, num_samples)  # those of `draw`: the same hard draws
        logits = class_logits(family, q.lam)
        noise = class_noise(noise_key, family, q.lam, num_samples)

        def one(key: Key, noise: Array) -> Array:
            chosen = jax.nn.one_hot(
                jnp.argmax(logits + noise, axis=-1), logits.shape[-1], dtype=logits.dtype
            )
            relaxed = soft(key, logits, noise, chosen)
            return from_classes(family, chosen + zero_valued(relaxed) if hard else relaxed)

        z = jax.vmap(one)(jax.random.split(spare_key(key), num_samples), noise)
        samples = Sample(z, log_probs(family, q.lam, z), inner_keys)
        log_w, slope, aux = live_weights(integrand, samples)
        value = setting.objective.value(log_w)
        if hard:
            log_q = log_probs(family, q.lam, jax.lax.stop_gradient(z))
            value = value + minus_direct_term(slope, log_q)
        return value, no_aux(aux)

    requires = Requirements(
        needs=(Density,),
        any_of=(BernoulliSites, CategoricalSites),
        samplewise=not hard,
        twice=not hard,
        in_z=True,
        unbiased=False,
        paper=paper,
        advice="Write pathwise() where there is a differentiable sampler, or score().",
    )
    return rule(name, requires, surrogate)


def _check_temperature(name: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(
            f"{name}(temperature={temperature}): the temperature must be positive and finite."
        )
