"""Swap the noise of two classes and see what changes: ARS and ARSM for categories."""

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import CategoricalSites, Density, lam_like, log_probs, need
from vijax.rules.base import (
    evaluate_at,
    from_gradient,
    keys,
    live_weights,
    minus_direct_term,
    no_aux,
    rule,
    spare_key,
)
from vijax.rules.discrete import changes
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)


def arsm(reference: int | None = None) -> Rule:
    """Augment-REINFORCE-swap-merge: z = argmin(log w - logits) with w ~ Dirichlet(1, ..., 1), w_c
    and w_j exchanged.

    Yin et al. 2019, eq. 9-13: g_c = sum_j (f^{cj} - mean_m f^{mj}) (1/C - w_j), f^{cj} at the z of
    the exchanged w; in a vector of sites all exchange the same two classes at once. For objectives
    other than the ELBO, f is the objective with this sample's entry exchanged.

    Args:
      reference: None for all j, the merge. A class j alone is ARS: C - 1 exchanges, more variance.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     one-hot categorical sites with logits, one or several.
    State:        none.
    Cost:         K (1 + C(C-1)/2) evaluations of the integrand per datum, no derivative in z; K C
                  with a reference. For one site and C > 2, enumerated() is exact and costs less.
    """
    if reference is not None and (not isinstance(reference, int) or reference < 0):
        raise ValueError(
            f"arsm(reference={reference!r}): give the number of a class, from 0, or None to merge "
            f"all."
        )
    requires = Requirements(
        needs=(CategoricalSites, Density),
        evaluations="K(1 + C(C-1)/2)" if reference is None else "KC",
        paper="Yin et al. 2019",
        advice=(
            "Write arm() or disarm() for Bernoulli vectors, score() or local_expectation() for "
            "either."
        ),
    )
    name = f"arsm({'' if reference is None else reference})"

    def check(family: Family, objective: Objective, num_samples: int, prior: Family | None) -> None:
        size = num_classes_of(family)
        if reference is not None and reference >= size:
            raise ValueError(
                f"{name} on {family.name}: there are {size} classes, numbered from 0. Name another."
            )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        objective, num_samples = setting.objective, setting.num_samples
        logits = need(q.family, CategoricalSites).logits(q.lam)
        fixed = jax.lax.stop_gradient(logits)
        noise_key, inner_keys = keys(key, num_samples)
        # As the family's own noise: the same key gives the same z as `draw`
        gumbel = jax.random.gumbel(noise_key, (num_samples, *logits.shape))
        z = winners(fixed, gumbel)
        log_q = log_probs(q.family, q.lam, z)
        log_w, slope, aux = live_weights(integrand, Sample(z, log_q, inner_keys))
        swaps, which = exchanges(logits.shape[-1], reference)
        swapped = winners(fixed, jnp.moveaxis(gumbel[..., swaps], -2, 1))  # [K, P, ..., C]
        exchanged, _ = evaluate_at(integrand, q, swapped.reshape(-1, *logits.shape), spare_key(key))
        change = changes(objective, log_w, exchanged.reshape(num_samples, -1))
        gradient = merged(change, which, jax.nn.softmax(-gumbel), reference)
        value = objective.value(log_w) + minus_direct_term(slope, log_q)
        return from_gradient(value, logits, gradient), no_aux(aux)

    return rule(name, requires, surrogate, check=check)


def num_classes_of(family: Family) -> int:
    """C of a categorical family."""
    return jax.eval_shape(need(family, CategoricalSites).logits, lam_like(family)).shape[-1]


def winners(logits: Array, gumbel: Array) -> Array:
    """One-hot [K, ..., C] of the largest perturbed logit per site."""
    perturbed = jnp.broadcast_to(logits, gumbel.shape) + gumbel
    return jax.nn.one_hot(jnp.argmax(perturbed, axis=-1), logits.shape[-1], dtype=logits.dtype)


def merged(change: Array, which: np.ndarray, dirichlet: Array, reference: int | None) -> Array:
    """The gradient in the logits [..., C]: sum_j (f^{cj} - mean_m f^{mj}) (1/C - w_j).

    Args:
      change: [K, P] f at each exchange minus f as drawn.
      which: [C, J] from `exchanges`.
      dirichlet: w, [K, ..., C].
      reference: j, None for all.
    """
    num_classes, num_references = which.shape
    # [K, C, J]; nothing changes where c = j
    values = jnp.pad(change, ((0, 0), (0, 1)))[:, which]
    references = slice(None) if reference is None else slice(reference, reference + 1)
    credit = (1.0 / num_classes - dirichlet[..., references]) * (num_classes / num_references)
    return jnp.einsum("kcj,k...j->...c", values - jnp.mean(values, axis=1, keepdims=True), credit)


def exchanges(num_classes: int, reference: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Permutations [P, C] that exchange two classes, and which of them [C, J] exchanges c and j; P
    where c = j.
    """
    references = range(num_classes) if reference is None else [reference]
    pairs = sorted(
        {(min(c, j), max(c, j)) for c in range(num_classes) for j in references if c != j}
    )
    swaps = np.tile(np.arange(num_classes), (len(pairs), 1))
    for row, (c, j) in zip(swaps, pairs, strict=True):
        row[[c, j]] = row[[j, c]]
    place = {pair: i for i, pair in enumerate(pairs)}
    which = [
        [place.get((min(c, j), max(c, j)), len(pairs)) for j in references]
        for c in range(num_classes)
    ]
    return swaps, np.array(which)
