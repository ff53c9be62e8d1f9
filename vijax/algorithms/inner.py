"""The inner loop of stochastic VI: how many updates a batch's phi_i get before everything else gets
one, and where they start.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.types import Array, PyTree, Scalar


class Inner(NamedTuple):
    """An inner loop. Build one with `inner`.

    Attributes:
      steps: the most updates of the batch's rows.
      tolerance: nats per datum; None: all steps are taken.
      window: steps that are averaged before two means are compared.
      restart: (theta, x) -> lam of one datum, where its row starts every time; None: where it was
        left.
    """

    steps: int
    tolerance: float | None
    window: int
    restart: Callable[[PyTree, PyTree], PyTree] | None


def inner(
    steps: int,
    *,
    tolerance: float | None = None,
    window: int = 5,
    restart: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Inner:
    """`descent(..., local_steps=inner(...))`: draw a batch, take steps on its phi_i, then one on
    everything else. Hoffman et al. 2013, section 2.

    Rows by `rowwise.lazy(optax.adam(rate))`, unless they restart: under `rowwise.adam`, which does
    what dense Adam does, rows that are not drawn go on by their momentum for every inner step that
    they miss, and at large rates overshoot.

    Args:
      steps: of the batch's rows; with a tolerance the most of them. The last one is taken together
        with that of everything else.
      tolerance: stop when the mean bound of `window` steps is less than this above that of the
        window before, nats per datum, over the whole batch. A bound by Monte Carlo moves by itself:
        below its standard error over (window x B) draws the loop ends by chance.
      window: of steps that are averaged; two of them must fit into `steps` for the loop to end
        before its last one.
      restart: (theta, x) -> lam of one datum: rows start there every time, their optimiser anew
        (a schedule of theirs counts inner steps); None: rows and optimiser go on from where they
        were left. The prior: `lambda theta, x: prior`; an encoder that is fitted already:
        `lambda theta, x: guide.at(phi, x)`. One that is fitted by what the steps reach:
        `guides.semi_amortized(guides.amortized(...), steps, rate, through=False)`, without a table.

    Raises:
      ValueError: if a number is impossible.
    """
    known = isinstance(tolerance, int | float | np.floating) and 0.0 < tolerance < float("inf")
    if not _whole(steps) or not _whole(window) or not (tolerance is None or known):
        raise ValueError(
            f"inner(steps={steps!r}, tolerance={tolerance!r}, window={window!r}): steps (descent's "
            "local_steps) and window must be ints of at least 1; the tolerance is a finite number "
            "of nats per datum, above 0."
        )
    return Inner(steps, tolerance, window, restart)


def described(settings: Inner) -> str:
    """What a state that was made under these settings depends on."""
    stopped = "" if settings.tolerance is None else f", tolerance={settings.tolerance:g}"
    return f"local_steps={settings.steps}{stopped}{', restarted' if settings.restart else ''}"


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


class Climb(NamedTuple):
    """Where the loop stands.

    Attributes:
      number: [] int32, steps taken.
      rows: of the batch.
      before: [] mean bound per datum of the last full window.
      total: [] sum of the present one's.
      rising: [] bool.
    """

    number: Array
    rows: PyTree
    before: Scalar
    total: Scalar
    rising: Array


def climb(
    step: Callable[[Array, PyTree], tuple[Scalar, PyTree]], rows: PyTree, settings: Inner
) -> tuple[Array, PyTree]:
    """(number of steps taken, rows after them): all but the last one of the loop.

    Args:
      step: (its number, rows) -> (bound per datum there [], rows after it).
    """
    if settings.tolerance is None:
        most = settings.steps - 1
        moved = rows
        if most:
            moved = jax.lax.fori_loop(0, most, lambda j, rows: step(j, rows)[1], rows)
        return jnp.int32(most), moved
    tolerance, window = settings.tolerance, settings.window

    def go_on(at: Climb) -> Array:
        return (at.number < settings.steps - 1) & at.rising

    def turn(at: Climb) -> Climb:
        bound, rows = step(at.number, at.rows)
        number, total = at.number + 1, at.total + bound
        full, mean = number % window == 0, total / window
        return Climb(
            number,
            rows,
            before=jnp.where(full, mean, at.before),
            total=jnp.where(full, jnp.zeros_like(total), total),
            rising=jnp.where(full, mean - at.before > tolerance, at.rising),
        )

    bound = jax.eval_shape(step, jnp.int32(0), rows)[0]
    start = Climb(
        jnp.int32(0),
        rows,
        before=jnp.full((), -jnp.inf, bound.dtype),
        total=jnp.zeros((), bound.dtype),
        rising=jnp.bool_(True),  # noqa: FBT003
    )
    end = jax.lax.while_loop(go_on, turn, start)
    return end.number, end.rows
