"""Runs that the tests of resuming kill. Nothing here touches a device when it is imported, so that
a process that has imported everything may be forked again and again: `serve`.
"""

import functools
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from vijax import densities
from vijax.optimize import container

N, D, CHUNK, CHUNKS = 40, 2, 7, 60


def data():
    return 1.0 + np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)


@functools.cache
def table_run():
    """(algorithm, params): a table whose rows follow their data and noise, in place."""

    def step(key, state, batch, *, recorded=True):
        gap = batch.x - state[batch.index]
        rows = state[batch.index] + 0.1 * gap + 0.01 * jax.random.normal(key, gap.shape)
        finite = jnp.all(jnp.isfinite(rows))
        return state.at[batch.index].set(rows), vj.Info(jnp.sum(gap**2), finite)

    algorithm = vj.Algorithm(
        name="table",
        init=lambda key, params: params.phi,
        step=step,
        params=lambda state: vj.Params((), state, ()),
        num_data=N,
        guarded=True,
    )
    return algorithm, vj.Params((), jnp.zeros((N, D)), ())


@functools.cache
def global_run():
    """(algorithm, params): one q, a rule that keeps running means."""
    model = vj.models.bayes_model(
        lambda theta, w: jnp.sum(densities.standard_normal(w)),
        lambda theta, w, x: jnp.sum(densities.standard_normal(x - w)),
    )
    guide = vj.guides.shared(vj.families.diag_normal(D))
    rule = vj.rules.score(vj.baselines.moving_average())
    est = vj.estimator(model, guide, rules=rule, num_samples=2, num_data=N)
    algorithm = vj.descent(est, optax.adam(0.05))
    return algorithm, est.init_params(jax.random.key(0))


def batches():
    """Rows in an order that no formula gives back."""
    rng, x = np.random.default_rng(3), data()
    while True:
        rows = rng.choice(N, 8, replace=False)
        yield vj.Batch(x[rows], rows)


class Best:
    """A callback that remembers: the loss of every chunk. It takes its time."""

    def __init__(self, seconds):
        self.seconds, self.seen = seconds, []

    def __call__(self, progress):
        time.sleep(self.seconds)
        self.seen.append([progress.step, float(progress.history.loss[-1])])

    def get_state(self):
        return {"seen": self.seen}

    def set_state(self, state):
        self.seen = state["seen"]


def fit(name, checkpoint, seconds=0.0):
    """(result, what the callback remembers) of the run of that name."""
    algorithm, params = RUNS[name]()
    source, size = (data(), 8) if name == "rows drawn" else (vj.Replay(batches), None)
    best = Best(seconds)
    result = vj.fit(
        jax.random.key(5),
        algorithm,
        params,
        source,
        num_steps=CHUNK * CHUNKS,
        batch_size=size,
        record_every=3,
        chunk_size=CHUNK,
        averaging=None if name == "rows drawn" else vj.algorithms.exponential(0.9),
        callbacks=[best],
        checkpoint=checkpoint,
    )
    return result, best.seen


def write_for_ever(folder):
    """Large files, one after the other, each of one number."""
    for step in range(10**6):
        path = pathlib.Path(folder) / container.name_of(step)
        container.write(path, [{"step": step}, np.full(400_000, step)])
        container.keep_newest(path.parent, 2)


RUNS = {"rows drawn": table_run, "iterator": global_run}


def serve():
    """For every line "NAME,FOLDER" on stdin: a forked process that does it, and its number on
    stdout; then how it ended.
    """
    for line in sys.stdin:
        name, folder = line.strip().split(",")
        child = os.fork()
        if child == 0:
            if name == "write":
                write_for_ever(folder)
            fit(name, vj.Checkpoint(folder, every_seconds=0.0), seconds=0.004)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
