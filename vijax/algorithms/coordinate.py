"""Coordinate ascent on the ELBO of local latents: a batch's q(z_i) go to their best, then what all
data share goes to its own. `em` and `cavi` say what that is.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vijax.algorithms.own_lam import check_own_lam
from vijax.algorithms.running import Running, averaged, exchanged
from vijax.finite import all_finite
from vijax.guides import over_data
from vijax.inference import Algorithm, Guide, Info
from vijax.rows import Rows, check_tables, gather, scatter, split
from vijax.shapes import check_batch
from vijax.types import Array, Batch, Key, Params, PyTree, Q, Scalar

Rate = float | Callable[[Array], Array]


class AscentState(NamedTuple):
    """Everything that moves.

    Attributes:
      shared: the state of what moves the shared part.
      seen: [N] bool, rows that were visited; [0] without a table.
      clock: [] int32, steps taken.
    """

    params: Params
    shared: PyTree
    seen: Array
    clock: Array


class Turn(NamedTuple):
    """A step between its halves.

    Attributes:
      before: lam of z, leaves [B, ...].
      after: likewise, at their best.
      seen: [B] bool: was the datum visited before?
      clock: [] int32.
    """

    before: PyTree
    after: PyTree
    seen: Array
    clock: Array
    batch: Batch


class Shared(Protocol):
    """The second half. Params are those before it, tables holding the batch's new rows alone."""

    def __call__(
        self, key: Key, state: PyTree, params: Params, turn: Turn
    ) -> tuple[Params, PyTree]:
        """The params with the shared part moved, and the state after."""
        ...


class Halves(NamedTuple):
    """What coordinate ascent is made of.

    Attributes:
      local: (key, params, q of z_i, x_i) -> the lam that it goes to.
      loss: (key, params, turn) -> [] minus the bound on all data, nats.
      start: params -> state of `shared`.
    """

    local: Callable[[Key, Params, Q, PyTree], PyTree]
    loss: Callable[[Key, Params, Turn], Scalar]
    start: Callable[[Params], PyTree]
    shared: Shared


def coordinate_ascent(
    name: str,
    guide: Guide,
    halves: Halves,
    *,
    num_data: int,
    check: Callable[[PyTree], None] | None,
) -> Algorithm:
    """The two halves in turn. The loss of a step is taken between them. Rows that the guide keeps
    are set to what the first half makes of them; those of a guide without a table stay.
    """
    tables = guide.num_data is not None
    check_own_lam(name.partition("(")[0], guide, [n for n in guide.families if n == "w" or tables])

    if tables and guide.num_data != num_data:
        raise ValueError(
            f"the guide's table has {guide.num_data} rows, but num_data={num_data}: they must be "
            "equal."
        )

    def init(key: Key, params: Params) -> AscentState:
        if not isinstance(params.phi, dict) or set(params.phi) != set(guide.families):
            raise ValueError(
                f"{name}: phi is {jax.tree.structure(params.phi)}, but must have an entry for each "
                f"of {sorted(guide.families)}: start at vijax.Params(theta, guide.init(key), ())."
            )
        check_tables(split(guide.is_table(params.phi), params.phi)[0], num_data)
        seen = jnp.zeros((num_data if tables else 0,), bool)
        return AscentState(params, halves.start(params), seen, jnp.zeros((), jnp.int32))

    def turned(key: Key, state: AscentState, batch: Batch) -> tuple[Params, Turn, PyTree]:
        """(params with the batch's rows alone, what the first half makes of them, former rows)."""
        check_batch(batch, num_data)
        params, index = state.params, batch.index
        former = gather(guide.is_table(params.phi), params.phi, index)

        def go(key: Key, q: Q, _: object, x: PyTree) -> tuple[PyTree, PyTree]:
            return q.lam, halves.local(key, params, q, x)

        before, after = over_data(guide, Rows(former), key, batch, lambda x: lambda s: s.log_q, go)
        seen = state.seen[index] if tables else jnp.ones(index.shape, bool)
        rows = former | {"z": after} if tables else former
        turn = Turn(before, after, seen, state.clock, batch)
        return params._replace(phi=rows), turn, former

    def step(
        key: Key, state: AscentState, batch: Batch, *, recorded: bool = True
    ) -> tuple[AscentState, Info]:
        local_key, loss_key, shared_key = jax.random.split(key, 3)
        params, turn, former = turned(local_key, state, batch)
        loss = halves.loss(loss_key, params, turn)
        kept = halves.shared(shared_key, state.shared, params, turn)
        finite = all_finite(kept)
        if recorded:
            finite = finite & jnp.isfinite(loss)
        held = (state.params._replace(phi=former), state.shared)
        moved, shared = jax.tree.map(lambda new, old: jnp.where(finite, new, old), kept, held)
        mask = guide.is_table(state.params.phi)
        phi = scatter(mask, state.params.phi, batch.index, moved.phi)
        seen = state.seen.at[batch.index].set(turn.seen | finite) if tables else state.seen
        clock = state.clock + jnp.where(finite, 1, 0)
        return AscentState(moved._replace(phi=phi), shared, seen, clock), Info(loss, finite)

    def inspect(key: Key, state: AscentState, batch: Batch) -> dict[str, PyTree]:
        local_key, loss_key, shared_key = jax.random.split(key, 3)
        params, turn, _ = turned(local_key, state, batch)
        moved, _ = halves.shared(shared_key, state.shared, params, turn)
        loss = halves.loss(loss_key, params, turn)
        return {"loss": loss, "q(z)": turn.after, "moved": moved._replace(phi=())}

    return Algorithm(
        name=name,
        init=init,
        step=step,
        params=lambda state: state.params,
        num_data=num_data,
        guarded=True,
        inspect=inspect,
        check=check,
    )


def by_statistics(
    guide: Guide,
    statistics: Callable[[Q, PyTree], PyTree],
    implied: Callable[[Params], PyTree],
    move: Callable[[Params, PyTree], Params],
    *,
    rate: Rate | None,
    num_data: int,
) -> tuple[Callable[[Params], Running], Shared]:
    """(start, shared) of a shared part that is a function, `move`, of the mean of statistics over
    the data: exact as soon as all were visited, or with a rate averaged over the steps.

    Args:
      implied: params -> the mean that would leave them where they are: where it starts.
    """
    family = guide.families["z"]

    def each(lam: PyTree, batch: Batch) -> PyTree:
        return jax.vmap(lambda lam, x: statistics(Q(family, lam), x))(lam, batch.x)

    def start(params: Params) -> Running:
        mean = implied(params)
        return Running(mean, mean if rate is None else ())

    def shared(key: Key, state: Running, params: Params, turn: Turn) -> tuple[Params, Running]:
        after = each(turn.after, turn.batch)
        if rate is None:
            before = each(turn.before, turn.batch)
            state = exchanged(state, before, after, turn.seen, num_data)
        else:
            size = jnp.asarray(rate(turn.clock) if callable(rate) else rate)
            state = averaged(state, after, size)
        return move(params, state.mean), state

    return start, shared


def check_rate(name: str, rate: object, guide: Guide) -> None:
    """Refuse a rate outside (0, 1], and none where no table knows what a row last added.

    Raises:
      ValueError: with what to write instead.
    """
    fine = isinstance(rate, int | float) and 0.0 < rate <= 1.0
    if not (rate is None or callable(rate) or fine):
        raise ValueError(
            f"{name}(rate={rate!r}): the share that a batch has in the running statistics lies in "
            "(0, 1]; or give a schedule of the step's number, such as lambda t: (t + 1.0) ** -0.6."
        )
    if rate is None and guide.num_data is None:
        raise ValueError(
            f"{name} without a rate exchanges what each datum last added, which this guide does "
            "not keep. Write guides.per_datapoint(family, num_data), or give a rate: 1.0 for full "
            "batches, a schedule for minibatches."
        )
