"""Does a step with a table of phi_i cost the same for a thousand rows and for a million?

One row of q's parameters per datum, 2-d latents, 256 data a step, `rowwise.adam` (dense Adam's
result). Expected: flat within 1.3, and below 3 times a hand-written loop that gathers rows of the
parameters and of Adam's moments, updates and scatters them (idle rows do not move: a worse result
for less work).

    python -m experiments.benchmarks.phi_tables
    python -m experiments.benchmarks.phi_tables --only=1e3
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.benchmarks.common.pairs import BLOCK, Config, compare, script  # isort: skip

import jax
import jax.numpy as jnp
import optax

import vijax as vj
from vijax import densities, rowwise

SIZE, DIM = 256, 2
SHORT = 2 * BLOCK  # steps of the call that is subtracted
ADAM = optax.adam(0.01)
ROWS = rowwise.adam(0.01)
KEY = jax.random.key(1)


class Flat(NamedTuple):
    """One table size.

    Attributes:
      ours_us: per step.
      over_smallest: the same, over that of the smallest table.
      over_by_hand: over the hand-written loop.
    """

    num_data: int
    ours_us: float
    over_smallest: float
    over_by_hand: float


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


def one_size(num_data: int, pairs: int, num_steps: int = 3200) -> tuple[float, float]:
    """(microseconds per step, ratio to the hand-written step)."""
    model = vj.models.latent_model(lambda key: jnp.zeros(DIM), log_joint)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(DIM), num_data)
    estimator = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=num_data)
    algorithm = vj.descent(estimator, ADAM, rows=ROWS)
    params = estimator.init_params(jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (num_data, DIM)) + 1.0

    def ours(steps: int) -> Any:
        return vj.fit(
            KEY, algorithm, params, x, num_steps=steps, batch_size=SIZE, record_every=100
        ).params

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


def rows(config: Config) -> Iterator[Flat]:
    """One per table size."""
    smallest = None
    for power in (3, 4, 5, 6):
        if config.only in f"1e{power}":
            ours, ratio = one_size(10**power, config.pairs)
            smallest = smallest or ours
            yield Flat(10**power, ours, ours / smallest, ratio)


if __name__ == "__main__":
    script(__doc__ or "", rows)
