"""What does a step of each discrete rule cost beside leave-one-out with two samples?

One layer of 200 binary latents over 784 pixels (synthetic, N = 2,000), batches of 50, Adam: the
model of `experiments.sbn`. Ratios are paired, `evaluations` is what the rule says of itself.
Expected: about the ratio of evaluations, more for rules that differentiate in z.

    python -m experiments.benchmarks.rules
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from experiments.benchmarks.common.pairs import Config, compare, script  # isort: skip

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from experiments.sbn.rules import RULES, estimator, evaluations

PIXELS, LATENTS, SIZE, NUM_DATA, NUM_STEPS = 784, 200, 50, 2_000, 100
ADAM = optax.adam(1e-3)
REFERENCE = "rloo"


class Cost(NamedTuple):
    """One rule.

    Attributes:
      over_rloo: median of paired ratios.
      first_call: CPU seconds, compilation included.
    """

    rule: str
    us_per_step: float
    over_rloo: float
    evaluations: str
    first_call: float


def rows(config: Config) -> Iterator[Cost]:
    """One per rule."""
    x = jnp.asarray(np.random.default_rng(0).random((NUM_DATA, PIXELS)) < 0.2, jnp.float32)
    model = vj.models.sigmoid_belief_net(PIXELS, (LATENTS,))
    guide = vj.models.recognition_net(PIXELS, (LATENTS,))

    def trainer(name: str) -> Callable[[], vj.Params]:
        one = estimator(model, guide, RULES[name], x)
        algorithm, params = vj.descent(one, ADAM), one.init_params(jax.random.key(0))
        return lambda: (
            vj.fit(
                jax.random.key(1),
                algorithm,
                params,
                x,
                num_steps=NUM_STEPS,
                batch_size=SIZE,
                record_every=NUM_STEPS,
                chunk_size=NUM_STEPS,
            ).params
        )

    reference = trainer(REFERENCE)
    for name, choice in RULES.items():
        if config.only in name:
            row = compare(
                name,
                trainer(name),
                reference,
                num_steps=NUM_STEPS,
                must=float("inf"),
                pairs=config.pairs,
            )
            cost = evaluations(choice, LATENTS)
            yield Cost(name, row.ours_us, row.ratio, cost, row.first_ours)


if __name__ == "__main__":
    script(__doc__ or "", rows)
