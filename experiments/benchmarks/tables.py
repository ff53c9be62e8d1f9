"""Does a step with a table of phi_i cost the same for a thousand rows and for a million?

One row of q's parameters per datum, 2-d latents, 256 data a step, `rowwise.adam` (dense Adam's result). Expected: flat within
1.3. The last column is the time over a hand-written step that treats the batch's rows as if they were all the parameters.

    python -m experiments.benchmarks.tables
"""

from typing import Any, NamedTuple

from experiments.benchmarks.pairs import Config, compare, hand_loop, report  # isort: skip

import jax
import jax.numpy as jnp
import optax
import tyro

import vijax as vj
from vijax import densities, rowwise

SIZE, DIM = 256, 2
ADAM = optax.adam(0.01)
ROWS = rowwise.adam(0.01)
KEY = jax.random.key(1)


class Flat(NamedTuple):
    """One table size."""

    num_data: int
    ours_us: float  # per step
    over_smallest: float  # the same, over that of the smallest table
    over_dense_batch: float  # over the hand-written step without a table


def log_joint(theta: jax.Array, z: jax.Array, x: jax.Array) -> jax.Array:
    """Prior z ~ Normal(0, I_2), x | z ~ Normal(z + theta, I_2)."""
    return jnp.sum(densities.standard_normal(z)) + jnp.sum(densities.standard_normal(x - z - theta))


def by_hand(params: Any, noise: jax.Array, x: jax.Array) -> Any:
    """Minus the ELBO's pathwise gradient for 256 data and their own parameters."""
    theta, lam = params
    scale = jnp.exp(lam["log_scale"])
    z = lam["loc"] + scale * noise
    residual = x - z - theta
    slope = residual - z
    return -residual.sum(0), {"loc": -slope, "log_scale": -slope * noise * scale - 1.0}


def one_size(num_data: int, pairs: int, num_steps: int = 3200) -> tuple[float, float]:
    """(microseconds per step, ratio to the hand-written step)."""
    model = vj.models.latent_model(lambda key: jnp.zeros(DIM), log_joint)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(DIM), num_data)
    estimator = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=num_data)
    params = estimator.init_params(jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (num_data, DIM)) + 1.0
    loop = hand_loop(by_hand, lambda key, steps: jax.random.normal(key, (steps, SIZE, DIM)), ADAM, num_steps)
    start = (params.theta, jax.tree.map(lambda leaf: leaf[:SIZE], params.phi))
    few, many = [
        compare(
            f"N={num_data}",
            lambda n=n: vj.fit(
                KEY, estimator, ADAM, params, x, num_steps=n, batch_size=SIZE, row_optimizer=ROWS, record_every=100
            ).params,
            lambda: loop(KEY, start, x[:SIZE]),
            num_steps=num_steps, must=3.0, pairs=pairs,
        )
        for n in (100, 100 + num_steps)
    ]  # fmt: skip
    # Copying a million rows in and out of a call is no part of a step: the time of a 100-step call is subtracted.
    ours = many.ours_us - few.ours_us
    return ours, ours / many.ideal_us


def main() -> None:
    """Run, print, write."""
    config, rows = tyro.cli(Config), []
    for num_data in (1_000, 10_000, 100_000, 1_000_000):
        ours, ratio = one_size(num_data, config.pairs)
        rows.append(Flat(num_data, ours, ours / (rows[0].ours_us if rows else ours), ratio))
    report(rows, config.json)


if __name__ == "__main__":
    main()
