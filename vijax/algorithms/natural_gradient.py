"""Natural gradients: q's parameters move along the gradient times the inverse Fisher information,
everything else by an optax optimiser.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vijax.algorithms.own_lam import check_own_lam
from vijax.families import Natural, need
from vijax.finite import all_finite
from vijax.inference import Algorithm, Estimator, Guide, Info
from vijax.rows import Rows, check_tables, gather, scale, scatter, split, stored
from vijax.types import Array, Batch, Key, Params, PyTree


class NaturalState(NamedTuple):
    """Everything that moves.

    Attributes:
      opt_state: of theta and control.
      estimator: the estimator's own state.
      clock: [] int32, steps taken.
    """

    params: Params
    opt_state: PyTree
    estimator: PyTree
    clock: Array


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def natural_gradient(
    estimator: Estimator,
    guide: Guide,
    rate: float | Callable[[Array], Array],
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """Ascend by eta <- eta + rate dELBO/dmu, q's natural and mean parameters. Khan and Nielsen
    2018; with conjugate models stochastic VI, Hoffman et al. 2013, eq. 12-17.

    Where the estimator's gradient is exact and the model conjugate, one step of rate 1 ends at the
    posterior: for normals and quadratic log-joints by `rules.quadratic_control()`. Rows of a table
    take the natural gradient of their own datum's bound: only those of the batch move.

    Args:
      estimator: of the bound, on that guide.
      guide: `guides.shared` or `per_datapoint` (or both), whose phi is q's parameters themselves.
      rate: of q's steps, in (0, 1]; or a schedule of the step's number.
      optimizer: of theta and control; None: they stay as they are.

    Raises:
      ValueError: if a family has no `Natural` trait, or phi is not q's parameters.
    """
    _check(guide, rate)
    steps = {name: need(family, Natural).step for name, family in guide.families.items()}
    others = optax.set_to_zero() if optimizer is None else optimizer
    tables = guide.num_data is not None

    def init(key: Key, params: Params) -> NaturalState:
        check_tables(split(estimator.is_table(params), params)[0], estimator.num_data)
        return NaturalState(
            params=params,
            opt_state=others.init((params.theta, params.control)),
            estimator=estimator.init(key, params),
            clock=jnp.zeros((), jnp.int32),
        )

    def step(
        key: Key, state: NaturalState, batch: Batch, *, recorded: bool = True
    ) -> tuple[NaturalState, Info]:
        params, mask = state.params, estimator.is_table(state.params).phi
        size = jnp.asarray(rate(state.clock) if callable(rate) else rate)
        before = gather(mask, params.phi, batch.index)
        view = params._replace(phi=Rows(before))
        seen, own = estimator.estimate(key, view, state.estimator, batch)
        slope = jax.tree.map(jnp.negative, stored(seen.grads.phi))
        moved = {}
        for name, one in steps.items():
            if name == "w":
                moved[name] = one(before[name], slope[name], size)
            else:
                factor = scale(estimator.num_data, batch)
                alone = jax.tree.map(lambda g, factor=factor: g / factor, slope[name])
                moved[name] = jax.vmap(one, in_axes=(0, 0, None))(before[name], alone, size)
        rest: Any = (params.theta, params.control)
        grads = (seen.grads.theta, seen.grads.control)
        updates, opt_state = others.update(grads, state.opt_state, rest)
        rest_after: Any = optax.apply_updates(rest, updates)
        kept = (moved, *rest_after, opt_state, own)
        finite = all_finite(kept)
        if recorded:
            finite = finite & jnp.isfinite(seen.loss)
        former = (before, *rest, state.opt_state, state.estimator)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), kept, former)
        moved, theta, control, opt_state, own = kept
        phi = scatter(mask, params.phi, batch.index, moved)
        clock = state.clock + jnp.where(finite, 1, 0)
        new = NaturalState(Params(theta, phi, control), opt_state, own, clock)
        return new, Info(loss=seen.loss, finite=finite)

    def inspect(key: Key, state: NaturalState, batch: Batch) -> dict[str, PyTree]:
        seen, _ = estimator.estimate(key, state.params, state.estimator, batch)
        return {"loss": seen.loss, "grads": seen.grads}

    return Algorithm(
        name=f"natural_gradient({', '.join(f.name for f in guide.families.values())})",
        init=init,
        step=step,
        params=lambda state: state.params,
        num_data=estimator.num_data,
        check=estimator.check,
        guarded=tables,
        inspect=inspect,
    )


def _check(guide: Guide, rate: object) -> None:
    if not callable(rate) and not (isinstance(rate, int | float) and 0.0 < rate <= 1.0):
        raise ValueError(
            f"natural_gradient(rate={rate!r}): a step of rate 1 goes all the way for a conjugate "
            "model, so it must lie in (0, 1]; or give a schedule of the step's number."
        )
    check_own_lam("natural_gradient", guide, guide.families)
