"""Paired timing: two programs in one process, A B A B ..., and the median of the ratios. No
workloads live here.

Importing this module pins the process to one core and XLA to one thread, and so must come before
jax. The clock is the process's CPU time: pinned, it is the wall time of an idle machine, and stays
so while the machine does other work.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from experiments.common import harness  # noqa: E402

Array = jax.Array
BLOCK = 64  # steps whose noise a hand-written loop draws at once


@dataclass(frozen=True)
class Config:
    """Settings shared by the benchmarks."""

    pairs: int = 15  # timings of each program, interleaved
    only: str = ""  # run the workloads whose name contains this
    json: Path | None = None  # also write the rows here


class Row(NamedTuple):
    """One workload.

    Attributes:
      ours_us: per step, steady state, median.
      ratio: median of the paired ratios.
      must: what the ratio should not exceed.
      first_ours: CPU seconds of the first call, compilation included.
    """

    name: str
    ours_us: float
    ideal_us: float
    ratio: float
    must: float
    first_ours: float
    first_ideal: float


def compare(
    name: str,
    ours: Callable[[], Any],
    ideal: Callable[[], Any],
    *,
    num_steps: int,
    must: float,
    pairs: int,
) -> Row:
    """Time both programs, which take `num_steps` steps a call; the first call of each apart."""
    first_ours, first_ideal = seconds(ours), seconds(ideal)
    seconds(ours)
    times = [(seconds(ours), seconds(ideal)) for _ in range(pairs)]
    ours_us, ideal_us = (1e6 * median(column) / num_steps for column in zip(*times, strict=True))
    return Row(
        name, ours_us, ideal_us, median(a / b for a, b in times), must, first_ours, first_ideal
    )


def seconds(call: Callable[[], Any]) -> float:
    """CPU seconds until the result is there."""
    began = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - began


def script(description: str, rows: Callable[[Config], Iterator[NamedTuple]]) -> None:
    """A benchmark as a program; `rows` yields its table row by row."""
    harness.console(lambda args: main(args, description, rows))


def main(
    args: Sequence[str], description: str, rows: Callable[[Config], Iterator[NamedTuple]]
) -> None:
    """Settings, rows as they come, the table, the file. A signal ends it with the rows there are,
    marked unfinished.
    """
    config, done = harness.parse(Config, description, args), []
    harness.at_least(config, pairs=1)
    with harness.stoppable() as stop:
        try:
            for row in rows(config):
                done.append(row)
        except KeyboardInterrupt as pressed:
            report(done, config.json, "UNFINISHED")
            raise harness.Interrupted("interrupted", stop.number) from pressed
    if not done:
        raise ValueError(f"--only={config.only}: no workload has that in its name.")
    report(done, config.json, "finished")


def report(rows: Sequence[NamedTuple], path: Path | None, status: str) -> None:
    """Print an aligned table; write it as JSON, with the status, if a path is given."""
    names = rows[0]._fields if rows else ("no row",)
    cells = [
        names,
        *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
                ]
            )
        )
    if status != "finished":
        print(status)
    if path is not None:
        harness.write_json(path, {"status": status, "rows": [row._asdict() for row in rows]})


def hand_loop(
    gradient: Callable[[Any, Any, Any], Any],
    draw: Callable[[Array, int], Any],
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> Callable[[Array, Any, Any], Any]:
    """`run(key, params, data)`: the loop one would write by hand, its random numbers drawn a block
    of steps at a time.

    gradient: (params, noise of one step, data) -> gradient to descend.
    draw: (key, steps) -> noise, leaves [steps, ...].
    """

    @jax.jit
    def run(key: Array, params: Any, data: Any) -> Any:
        def step(carry: Any, noise: Any) -> tuple[Any, None]:
            params, state = carry
            updates, state = optimizer.update(gradient(params, noise, data), state, params)
            return (optax.apply_updates(params, updates), state), None

        def block(carry: Any, key: Array) -> tuple[Any, None]:
            return jax.lax.scan(step, carry, draw(key, BLOCK))[0], None

        keys = jax.random.split(key, -(-num_steps // BLOCK))
        return jax.lax.scan(block, (params, optimizer.init(params)), keys)[0][0]

    return run


def normal_noise(*shape: int) -> Callable[[Array, int], Array]:
    """A `draw` of standard normals."""
    return lambda key, steps: jax.random.normal(key, (steps, *shape), jnp.float32)
