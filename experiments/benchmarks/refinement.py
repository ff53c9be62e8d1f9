"""What does a step of refinement cost (`guides.semi_amortized`), against the encoder alone?

The digits VAE 64-200-10 of `experiments.benchmarks.vae`, batches of 128, Adam: microseconds per
step of training with 1 and 5 inner steps of ascent, the gradient through them or stopped, over the
same with none. An inner step evaluates the log-joint and its gradient in z once, and through the
steps that gradient is differentiated once more. Seen: each inner step costs 1.1 times a step of the
encoder alone, 0.3 times if the gradient is stopped.

    python -m experiments.benchmarks.refinement
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from experiments.benchmarks.common.pairs import Config, Row, compare, script  # isort: skip

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import vijax as vj
from experiments.benchmarks.vae import ADAM, KEY, SIZE, init_net, net
from vijax import densities

HIDDEN, LATENT, RATE = 200, 10, 0.01
NUM_STEPS = 128


def training(x: jax.Array, steps: int, *, through: bool) -> Callable[[], Any]:
    """A run with so many inner steps."""

    def log_joint(theta: Any, z: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(densities.standard_normal(z)) + jnp.sum(
            densities.bernoulli(x, net(theta, z))
        )

    num_data, pixels = x.shape
    model = vj.models.latent_model(lambda key: init_net(key, LATENT, HIDDEN, pixels), log_joint)
    encoder = (lambda key: init_net(key, pixels, HIDDEN, 2 * LATENT), net)
    guide = vj.guides.amortized(vj.families.diag_normal(LATENT), encoder)
    refined = vj.guides.semi_amortized(guide, steps, RATE, through=through)
    estimator = vj.estimator(model, refined, rules=vj.rules.pathwise(), num_data=num_data)
    params, algorithm = estimator.init_params(jax.random.key(0)), vj.descent(estimator, ADAM)
    return lambda: (
        vj.fit(
            KEY, algorithm, params, x, num_steps=NUM_STEPS, batch_size=SIZE, record_every=100
        ).params
    )


def rows(config: Config) -> Iterator[Row]:
    """One per number of inner steps."""
    x = jnp.asarray(np.asarray(load_digits(return_X_y=True)[0]) > 8.0, jnp.float32)
    alone = functools.cache(lambda: training(x, 0, through=True))
    for steps in (0, 1, 5):
        for through in (True, False) if steps else (True,):
            name = f"{steps} steps{'' if through else ', stopped'}"
            if config.only in name:
                yield compare(
                    name,
                    training(x, steps, through=through),
                    alone(),
                    num_steps=NUM_STEPS,
                    must=1.0 + (1.2 if through else 0.4) * steps,
                    pairs=config.pairs,
                )


if __name__ == "__main__":
    script(__doc__ or "", rows)
