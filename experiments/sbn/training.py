"""The working parts of `experiments.sbn`: data and estimators, one rule's training, variances, test
bounds.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import vijax as vj
from experiments.common import data, harness
from experiments.common.images import binarized, score
from experiments.sbn.path import Checkpoint, Watch
from experiments.sbn.rules import RULES, estimator
from vijax.diagnostics import Evidence
from vijax.types import Array, Key

if TYPE_CHECKING:
    from experiments.sbn.__main__ import Config

CHECKPOINTS = 6  # where variances and test bounds are measured
RECORD_EVERY = 10
STEPS = (CHECKPOINTS - 1) * RECORD_EVERY  # a run is a multiple of so many


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      train_x: [N, P].
      test_x: [M, P].
      algorithms: what trains each estimator; the same for every seed, which so compile once.
    """

    train_x: Array
    test_x: Array
    model: vj.Model
    guide: vj.Guide
    estimators: dict[str, vj.Estimator]
    algorithms: dict[str, vj.Algorithm]


class Trained(NamedTuple):
    """One rule's run.

    Attributes:
      step: [T].
      curve: [T] ELBO of training minibatches, nats per image.
      path: every checkpoint that was reached, the initial one first.
      at: [len(path)] steps taken at each.
      seconds: [len(path)] of training until each, compilation left out.
      microseconds: per step, median of chunks, compilation left out.
      interrupted: before its last step.
    """

    step: np.ndarray
    curve: np.ndarray
    path: list[Checkpoint]
    at: np.ndarray
    seconds: np.ndarray
    microseconds: float
    interrupted: bool


def build(config: "Config") -> Job:
    """Data, model, guide, and an estimator for every rule. Refuses settings that would answer
    another question than they seem to ask.
    """
    counts = ("layers", "batch_size", "num_steps", "seeds")
    least = {"hidden": 0, "num_draws": 2, "evidence_samples": 2, "max_scored": 0}
    harness.at_least(config, **dict.fromkeys(counts, 1), **least)
    if config.num_steps % STEPS:
        near = STEPS * max(1, round(config.num_steps / STEPS))
        raise ValueError(
            f"--num_steps={config.num_steps} is no multiple of {STEPS}, so its checkpoints would "
            f"not lie on recorded steps. Write --num_steps={near}."
        )
    unknown = [name for name in config.rules if name not in RULES]
    if unknown or not config.rules:
        raise ValueError(f"--rules={','.join(config.rules)}: choose from {', '.join(RULES)}.")
    images = data.load(config.data, config.data_dir, own_files=config.own_files)
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
    optimizer = optax.partition(
        {"model": optax.adam(config.learning_rate), "control": optax.adam(config.control_rate)},
        vj.Params("model", "model", "control"),
    )
    algorithms = {name: vj.descent(one, optimizer) for name, one in made.items()}
    return Job(train_x, test_x, model, guide, made, algorithms)


def steps_per_chunk(config: "Config") -> int:
    """A multiple of RECORD_EVERY; CHECKPOINTS - 1 chunks make a run."""
    return config.num_steps // (CHECKPOINTS - 1)


def train(key: Key, config: "Config", job: Job, name: str, bar: tqdm) -> Trained:
    """The whole training of a rule.

    Raises:
      KeyboardInterrupt: if a signal cut it short.
    """
    *_, last = training(key, config, job, name, bar)
    if last.interrupted:
        raise KeyboardInterrupt
    return last


def training(
    key: Key, config: "Config", job: Job, name: str, bar: tqdm, kept: vj.Checkpoint | None = None
) -> Iterator[Trained]:
    """One rule from the common starting point, as far as it is at each checkpoint, or where a
    signal ends it; theta, phi and the minibatches are the same function of the seed for all.

    Args:
      kept: from where it goes on.
    """
    est, every = job.estimators[name], steps_per_chunk(config)
    init_key, fit_key = jax.random.split(key)
    common = next(iter(job.estimators.values())).init_params(init_key)
    params = est.init_params(init_key)._replace(theta=common.theta, phi=common.phi)
    watch = Watch(every, [Checkpoint(params, est.init(init_key, params))])
    result, shown = None, 0
    while result is None or not (result.num_steps == config.num_steps or result.interrupted):
        begun = kept.step if result is None and kept is not None else watch.at[-1]
        watch.mark = time.perf_counter(), begun
        result = vj.fit(
            fit_key,
            job.algorithms[name],
            params,
            job.train_x,
            num_steps=harness.steps_ahead(kept, result, every, config.num_steps),
            batch_size=config.batch_size,
            record_every=RECORD_EVERY,
            callbacks=[watch],
            resume=result,
            checkpoint=kept,
        )
        if watch.at[-1] != result.num_steps:  # a signal came between two checkpoints
            watch.add(result)
        per_step = watch.per_step
        usual = float(np.median(per_step[1:] or per_step))  # the first part compiles
        curve = -result.history.loss / len(job.train_x)
        bar.update(len(watch.per_step) - shown)
        shown = len(watch.per_step)
        bar.set_postfix_str(f"{name}: ELBO {curve[-1]:.2f} nats/image")
        yield Trained(
            step=result.history.step,
            curve=curve,
            path=list(watch.path),
            at=np.array(watch.at),
            seconds=np.cumsum(np.diff(watch.at, prepend=0) * [0.0, usual, *per_step[1:]]),
            microseconds=1e6 * usual,
            interrupted=result.interrupted,
        )


def variances(
    key: Key,
    config: "Config",
    job: Job,
    name: str,
    path: Sequence[Checkpoint],
    own: Sequence[Checkpoint],
    bar: tqdm,
) -> tuple[np.ndarray, np.ndarray]:
    """[CHECKPOINTS] variance of a rule's gradient in phi along a path, and its standard errors; the
    rule brings the control and the state that its own training had there.

    As everywhere: summed over the elements of phi, of the bound on all training data in nats,
    estimated from one fixed minibatch; in nats^2.
    """
    batch = vj.Batch(job.train_x[: config.batch_size], jnp.arange(config.batch_size))
    rows = []
    for place, mine in zip(path, own, strict=True):
        params = place.params._replace(control=mine.params.control)
        blocks = vj.lab.gradient_report(
            key, job.estimators[name], params, mine.state, batch, num_draws=config.num_draws
        ).blocks
        phi = blocks.block.index("phi")
        rows.append((float(blocks.variance[phi]), float(blocks.variance_error[phi])))
        bar.update(1)
    values, errors = np.array(rows).T
    return values, errors


def held_out_scores(
    key: Key, config: "Config", job: Job, path: Sequence[Checkpoint], bar: tqdm
) -> list[Evidence]:
    """ELBO and multi-sample bound of every test image at every checkpoint of a path."""
    scores = []
    for place in path:
        params, k = place.params, config.evidence_samples
        scores.append(score(key, job.model, job.guide, params, job.test_x, k))
        bar.update(1)
    return scores
