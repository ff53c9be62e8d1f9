"""Swap the noise of two classes and see what changes: ARS and ARSM for categories."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from vijax.baselines import replace_one
from vijax.rules.base import check_requirements, evaluate_at, from_gradient, mean_aux, rule
from vijax.rules.discrete import live_weights, spare_key
from vijax.types import Array, Aux, Family, Objective, Requirements, Rule


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
        categorical=True,
        evaluations="K(1 + C(C-1)/2)" if reference is None else "KC",
        paper="Yin et al. 2019",
        advice=(
            "Write arm() or disarm() for Bernoulli vectors, score() or local_expectation() for "
            "either."
        ),
    )
    name = f"arsm({'' if reference is None else reference})"

    def check(family: Family, objective: Objective, num_samples: int, prior: Family | None) -> None:
        check_requirements(name, requires, family, objective, num_samples, prior)
        size = num_classes_of(family)
        if reference is not None and reference >= size:
            raise ValueError(
                f"{name} on {family.name}: there are {size} classes, numbered from 0. Name another."
            )

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        logits = family.categorical_logits(lam)
        stopped = jax.lax.stop_gradient(logits)
        num_classes = logits.shape[-1]
        noise_key, inner_key = jax.random.split(key)  # as in `draw`: the same key gives the same z
        gumbel = jax.random.gumbel(noise_key, (num_samples, *logits.shape))

        def one_hot(gumbel: Array) -> Array:
            shape = (1,) * (gumbel.ndim - logits.ndim) + logits.shape
            return jax.nn.one_hot(
                jnp.argmax(stopped.reshape(shape) + gumbel, axis=-1),
                num_classes,
                dtype=logits.dtype,
            )

        keys = jax.random.split(inner_key, num_samples)
        log_w, centre, aux = live_weights(integrand, family, lam, one_hot(gumbel), keys)
        swaps, which = exchanges(num_classes, reference)
        z = one_hot(jnp.moveaxis(gumbel[..., swaps], -2, 1))  # [K, P, ..., C]
        exchanged = evaluate_at(
            integrand, family, lam, z.reshape(-1, *logits.shape), spare_key(key)
        )[0]
        exchanged = jax.lax.stop_gradient(exchanged).reshape(num_samples, -1)
        fixed = jax.lax.stop_gradient(log_w)
        change = -jax.vmap(
            lambda other: replace_one(objective, fixed, other), in_axes=1, out_axes=1
        )(exchanged)
        # [K, C, J]; nothing changes where c = j
        values = jnp.pad(change, ((0, 0), (0, 1)))[:, which]
        dirichlet = jax.nn.softmax(-gumbel)
        references = slice(None) if reference is None else slice(reference, reference + 1)
        credit = (1.0 / num_classes - dirichlet[..., references]) * (num_classes / which.shape[1])
        gradient = jnp.einsum(
            "kcj,k...j->...c", values - jnp.mean(values, axis=1, keepdims=True), credit
        )
        return from_gradient(objective(log_w) + centre, logits, gradient), Aux((), mean_aux(aux))

    return rule(name, requires, surrogate, check=check)


def num_classes_of(family: Family) -> int:
    """C of a categorical family."""
    logits = cast(Callable, family.categorical_logits)
    return jax.eval_shape(lambda: logits(family.init(jax.random.key(0)))).shape[-1]


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
