"""The working parts of `experiments.sbn`: data and estimators, one rule's training, variances."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import vijax as vj
from experiments.common import data
from experiments.common.images import binarized
from experiments.sbn.rules import RULES, estimator
from vijax.types import Array, Key, PyTree

if TYPE_CHECKING:
    from experiments.sbn.__main__ import Config

CHECKPOINTS = 6  # where variances are measured
RECORD_EVERY = 10


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      train_x: [N, P].
      test_x: [M, P].
    """

    train_x: Array
    test_x: Array
    model: vj.Model
    guide: vj.Guide
    estimators: dict[str, vj.Estimator]


class Checkpoint(NamedTuple):
    """Where a run was at one of its checkpoints; `state` is the estimator's."""

    params: vj.Params
    state: PyTree


class Trained(NamedTuple):
    """One rule's run.

    Attributes:
      step: [T].
      curve: [T] ELBO of training minibatches, nats per image.
      path: every checkpoint, the initial one first.
      microseconds: per step, median of chunks, compilation left out.
    """

    step: np.ndarray
    curve: np.ndarray
    path: list[Checkpoint]
    microseconds: float


def build(config: "Config") -> Job:
    """Data, model, guide, and an estimator for every rule."""
    unknown = [name for name in config.rules if name not in RULES]
    if unknown or not config.rules:
        raise ValueError(f"--rules={','.join(config.rules)}: choose from {', '.join(RULES)}.")
    images = data.load(config.data, config.data_dir)
    fixed = data.threshold if config.binarize == "threshold" else data.sampled(config.seed)
    dynamic = config.binarize == "dynamic"
    train_x = jnp.asarray(images.train_x if dynamic else fixed(images.train_x))
    test_x = jnp.asarray(fixed(images.test_x[: config.max_scored or None]))
    num_pixels, mean = train_x.shape[1], jnp.asarray(images.train_x.mean(axis=0))
    model = vj.models.sigmoid_belief_net(num_pixels, config.layers, hidden=config.hidden)
    guide = vj.models.recognition_net(num_pixels, config.layers, hidden=config.hidden, mean=mean)
    made = {name: estimator(model, guide, RULES[name], train_x) for name in config.rules}
    if dynamic:
        made = {name: binarized(one) for name, one in made.items()}
    return Job(train_x, test_x, model, guide, made)


def steps_per_chunk(config: "Config") -> int:
    """A multiple of RECORD_EVERY; CHECKPOINTS - 1 chunks make a run."""
    return max(1, config.num_steps // (CHECKPOINTS - 1) // RECORD_EVERY) * RECORD_EVERY


def train(key: Key, config: "Config", job: Job, name: str, bar: tqdm) -> Trained:
    """One rule from the common starting point; theta, phi and the minibatches are the same function
    of the seed for all.
    """
    est, every = job.estimators[name], steps_per_chunk(config)
    init_key, fit_key = jax.random.split(key)
    common = next(iter(job.estimators.values())).init_params(init_key)
    params = est.init_params(init_key)._replace(theta=common.theta, phi=common.phi)
    path, seconds = [Checkpoint(params, est.init(init_key, params))], []
    mark = time.perf_counter()

    def watch(seen: vj.Progress) -> None:
        nonlocal mark
        seconds.append((time.perf_counter() - mark) / every)
        state = jax.tree.map(jnp.copy, seen.result.state.estimator)  # further steps may consume it
        path.append(Checkpoint(seen.params, state))
        bar.update(1)
        elbo = -seen.history.loss[-1] / len(job.train_x)
        bar.set_postfix_str(f"{name}: ELBO {elbo:.2f} nats/image")
        mark = time.perf_counter()

    optimizer = optax.partition(
        {"model": optax.adam(config.learning_rate), "control": optax.adam(config.control_rate)},
        vj.Params("model", "model", "control"),
    )
    result = vj.fit(
        fit_key,
        vj.descent(est, optimizer),
        params,
        job.train_x,
        num_steps=every * (CHECKPOINTS - 1),
        batch_size=config.batch_size,
        record_every=RECORD_EVERY,
        chunk_size=every,
        callbacks=[watch],
    )
    curve = -result.history.loss / len(job.train_x)
    return Trained(result.history.step, curve, path, 1e6 * float(np.median(seconds[1:] or seconds)))


def variances(
    key: Key, config: "Config", job: Job, runs: Mapping[str, Trained], bar: tqdm
) -> dict[str, np.ndarray]:
    """[CHECKPOINTS] variance of phi's gradient for every rule, averaged over its elements, along
    the first rule's path.

    Of the gradient of the ELBO in nats per image, estimated from one fixed minibatch.
    """
    reference = runs[config.rules[0]].path
    batch = vj.Batch(job.train_x[: config.batch_size], jnp.arange(config.batch_size))
    measured = {}
    for name, est in job.estimators.items():
        row = []
        for place, own in zip(reference, runs[name].path, strict=True):
            params = place.params._replace(control=own.params.control)
            seen = vj.lab.gradient_report(
                key, est, params, own.state, batch, num_draws=config.num_draws
            )
            leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(seen.variance.phi)]
            row.append(float(np.concatenate(leaves).mean()) / len(job.train_x) ** 2)
            bar.update(1)
        measured[name] = np.asarray(row)
    return measured
