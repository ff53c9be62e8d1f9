"""Does a step with a table of phi_i cost the same for a thousand rows and for ten million?

One row of q's parameters per datum, 2-d latents, 256 data a step, `rowwise.adam` (dense Adam's
result). Expected: no growth with N but that of memory, 1.3 to 1.7 from a table in the cache to one
of ten million rows, where a hand-written loop that gathers rows of the parameters and of Adam's
moments, updates and scatters them (idle rows do not move: a worse result for less work) grows
nearly fourfold; about 3 times that loop at 1e3 rows, 1.2 at 1e7. With table and data on the host,
whose rows go to the device and back by chunks of 100 steps: the most memory of a process that does
just that, at 1e7 below 8 GiB.

    python -m experiments.benchmarks.phi_tables
    python -m experiments.benchmarks.phi_tables --only=1e3
"""

import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

from experiments.benchmarks.common.pairs import (  # isort: skip  (before jax)
    BLOCK,
    Config,
    compare,
    script,
)

import jax
import jax.numpy as jnp
import optax

import vijax as vj
from vijax import densities, rowwise

SIZE, DIM = 256, 2
SHORT = 2 * BLOCK  # steps of the call that is subtracted
ADAM = optax.adam(0.01)
ROWS = rowwise.adam(0.01)
ROW_BYTES = 13 * 4  # 4 numbers of phi, 8 moments, a clock
GIB = 2**30
KEY = jax.random.key(1)


class Flat(NamedTuple):
    """One table size.

    Attributes:
      ours_us: per step.
      over_smallest: the same, over that of the smallest table.
      over_by_hand: over the hand-written loop.
      host_us: per step with table and data on the host.
      table_gib: phi with its optimiser state, 52 bytes a row.
      peak_gib: the most memory of a process, Python and JAX included.
      tables: how many tables that is above the peak of 1e3 rows; NaN for a small table.
      host_peak_gib: the same two with table and data on the host.
    """

    num_data: int
    ours_us: float
    over_smallest: float
    over_by_hand: float
    host_us: float
    table_gib: float
    peak_gib: float
    tables: float
    host_peak_gib: float
    host_tables: float


def log_joint(theta: jax.Array, z: jax.Array, x: jax.Array) -> jax.Array:
    """Prior z ~ Normal(0, I_2), x | z ~ Normal(z + theta, I_2)."""
    return jnp.sum(densities.standard_normal(z)) + jnp.sum(densities.standard_normal(x - z - theta))


def by_hand(num_data: int, num_steps: int):
    """(key, theta, table, x) -> the same after num_steps steps of Adam on theta and on the rows of
    each batch.
    """
    rate, b1, b2, eps = 0.01, 0.9, 0.999, 1e-8

    def adam(
        params: Any, first: Any, second: Any, grads: Any, count: jax.Array
    ) -> tuple[Any, Any, Any]:
        first = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1.0 - b2) * g * g, second, grads)
        size, root = rate / (1.0 - b1**count), 1.0 / jnp.sqrt(1.0 - b2**count)
        return (
            jax.tree.map(
                lambda p, m, v: p - size * m / (root * jnp.sqrt(v) + eps), params, first, second
            ),
            first,
            second,
        )

    def step(carry: Any, noise: jax.Array, index: jax.Array, x: jax.Array, count: jax.Array) -> Any:
        theta, whole = carry
        lam, first, second = jax.tree.map(lambda leaf: leaf[index], whole)
        scale = jnp.exp(lam["log_scale"])
        z = lam["loc"] + scale * noise
        residual = x[index] - z - theta[0]
        slope = residual - z
        rows = adam(
            lam, first, second, {"loc": -slope, "log_scale": -slope * noise * scale - 1.0}, count
        )
        whole = jax.tree.map(lambda leaf, row: leaf.at[index].set(row), whole, rows)
        return adam(
            theta[0], theta[1], theta[2], -residual.sum(0) * (num_data / SIZE), count
        ), whole

    @jax.jit
    def loop(key: jax.Array, theta: jax.Array, table: Any, x: jax.Array) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, (theta, table))
        carry = ((theta, zeros[0], zeros[0]), (table, zeros[1], zeros[1]))

        def block(i: jax.Array, carry: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, i))
            noise = jax.random.normal(keys[0], (BLOCK, SIZE, DIM))
            index = jax.random.randint(keys[1], (BLOCK, SIZE), 0, num_data)
            one = lambda j, c: step(c, noise[j], index[j], x, i * BLOCK + j + 1.0)  # noqa: E731
            return jax.lax.fori_loop(0, BLOCK, one, carry)

        return jax.lax.fori_loop(0, num_steps // BLOCK, block, carry)

    return loop


def problem(num_data: int, *, host: bool) -> tuple[vj.Params, jax.Array, Callable[..., Any]]:
    """(parameters, data, `train(steps, *callbacks)` -> the parameters after them)."""
    model = vj.models.latent_model(lambda key: jnp.zeros(DIM), log_joint)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(DIM), num_data)
    estimator = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=num_data)
    algorithm = vj.descent(estimator, ADAM, rows=rowwise.on_host(ROWS) if host else ROWS)
    params = estimator.init_params(jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (num_data, DIM)) + 1.0
    data = vj.on_host(x) if host else x

    def train(steps: int, *callbacks: Callable[[vj.Progress], None]) -> Any:
        return vj.fit(
            KEY,
            algorithm,
            params,
            data,
            num_steps=steps,
            batch_size=SIZE,
            record_every=100,
            callbacks=callbacks,
        ).params

    return params, x, train


def one_size(num_data: int, pairs: int, num_steps: int = 3200) -> tuple[float, float]:
    """(microseconds per step, ratio to the hand-written step)."""
    params, x, ours = problem(num_data, host=False)
    loops = {steps: by_hand(num_data, steps) for steps in (SHORT, SHORT + num_steps)}
    few, many = [
        compare(
            f"N={num_data}",
            lambda n=n: ours(n),
            lambda n=n: loops[n](KEY, params.theta, params.phi["z"], x),
            num_steps=num_steps,
            must=3.0,
            pairs=pairs,
        )
        for n in loops
    ]
    # Copying a million rows in and out of a call is no part of a step: the time of a short call is
    # subtracted.
    return many.ours_us - few.ours_us, (many.ours_us - few.ours_us) / (many.ideal_us - few.ideal_us)


def on_host(num_data: int, num_steps: int = 3200) -> float:
    """Microseconds per step with table and data on the host: the median over chunks, each with its
    rows' way to the device and back.
    """
    ends = []
    problem(num_data, host=True)[2](
        num_steps, lambda seen: ends.append((seen.step, time.process_time()))
    )
    return 1e6 * median((b - a) / (n - m) for (m, a), (n, b) in itertools.pairwise(ends))


def peak(num_data: int, *, host: bool) -> float:
    """GiB: the most memory of a process that takes some steps and reads the result."""
    code = f"from {__spec__.name} import most; most({num_data}, host={host})"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return float(told.split()[-1])


def most(num_data: int, *, host: bool) -> None:
    """Take some steps, read the result and print this process's peak."""
    jax.block_until_ready(problem(num_data, host=host)[2](300))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB)


def rows(config: Config) -> Iterator[Flat]:
    """One per table size."""
    smallest, least = None, None
    for power in (3, 4, 5, 6, 7):
        if config.only in f"1e{power}":
            num_data, pairs = 10**power, config.pairs if power < 7 else min(config.pairs, 5)
            ours, ratio = one_size(num_data, pairs)
            smallest = smallest or ours
            table = ROW_BYTES * num_data / GIB
            least = least or [peak(10**3, host=host) for host in (False, True)]
            peaks = [peak(num_data, host=host) for host in (False, True)]
            above = [(one - low) / table for one, low in zip(peaks, least, strict=True)]
            above = above if table > 0.01 else [float("nan")] * 2  # compiling takes more
            yield Flat(
                num_data=num_data,
                ours_us=ours,
                over_smallest=ours / smallest,
                over_by_hand=ratio,
                host_us=on_host(num_data),
                table_gib=table,
                peak_gib=peaks[0],
                tables=above[0],
                host_peak_gib=peaks[1],
                host_tables=above[1],
            )


if __name__ == "__main__":
    script(__doc__ or "", rows)
