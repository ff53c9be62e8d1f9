"""Training with a learning curve of both splits."""

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import optax
from tqdm.auto import tqdm

import vijax as vj
from experiments.common import harness
from experiments.common.compilations import Compilations, compilations
from experiments.common.images import binarized, score
from experiments.vae.held_out import HeldOut
from experiments.vae.problem import Job, make_estimator, make_guide
from vijax.optimize import steps_per_epoch
from vijax.types import Array, Key, PyTree

if TYPE_CHECKING:
    from experiments.vae.__main__ import Config

CURVE_POINTS = 30
CURVE_SAMPLES = 10  # per image: their noise averages out over the images
CURVE_TEST_STEPS = 100  # of phi_i of test images, from where they were

Evaluate = Callable[[vj.Params], tuple[float, float]]
"""Params -> ELBO of (train, test), nats per image."""


class Trained(NamedTuple):
    """A trained model, and how it went.

    Attributes:
      epoch: [T].
      train_curve: [T] ELBO, nats per image.
      test_curve: [T].
      compilations: until the first chunk's result was read.
      compile_seconds: first chunk's time above a usual chunk's: initialisation, tracing and
        compiling.
      seconds_per_epoch: median, without the learning curve's evaluations.
      seconds: all of it.
    """

    guide: vj.Guide
    params: vj.Params
    epoch: np.ndarray
    train_curve: np.ndarray
    test_curve: np.ndarray
    compilations: int
    compile_seconds: float
    seconds_per_epoch: float
    seconds: float
    interrupted: bool


def train(key: Key, config: "Config", job: Job, test: HeldOut | None) -> Trained:
    """Fit theta and phi on the training images; `test` from `held_out_fitter`."""
    num_data = len(job.train_x)
    per_epoch = steps_per_epoch(num_data, config.batch_size)
    num_steps = config.epochs * per_epoch
    chunk_size = max(1, min(100, num_steps // 4))
    guide = make_guide(config, job.train_x)
    estimator = make_estimator(job, guide, num_data)
    estimator = binarized(estimator) if config.binarize == "dynamic" else estimator
    algorithm = vj.descent(
        estimator,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
        rows=vj.rowwise.adam(optax.cosine_decay_schedule(config.row_learning_rate, num_steps)),
    )
    init_key, fit_key, curve_key = jax.random.split(key, 3)
    evaluate = curve_evaluator(curve_key, job, guide, test)
    bar = harness.progress_bar(config.epochs, "train", "epoch")
    with compilations() as compiled, bar:
        watch = Watch(config, num_steps, per_epoch, num_data, evaluate, compiled, bar)
        began = watch.mark
        result = vj.fit(
            fit_key,
            algorithm,
            estimator.init_params(init_key),
            job.train_x,
            num_steps=num_steps,
            batch_size=config.batch_size,
            record_every=chunk_size,
            chunk_size=chunk_size,
            callbacks=[watch],
        )
        seconds = time.perf_counter() - began
    epoch, train_curve, test_curve = np.asarray(watch.curve).T
    return Trained(
        guide=guide,
        params=result.params,
        epoch=epoch,
        train_curve=train_curve,
        test_curve=test_curve,
        compilations=watch.first_compilations,
        compile_seconds=watch.compile_seconds(),
        seconds_per_epoch=watch.seconds_per_step() * per_epoch,
        seconds=seconds,
        interrupted=result.interrupted,
    )


@dataclasses.dataclass
class Watch:
    """The callback of the fit: times its chunks, evaluates the learning curve, moves the bar.

    Attributes:
      curve: (epoch, train, test) of every evaluation.
      chunks: (steps, seconds) of every chunk, without the evaluation after it.
      mark: when the present chunk began.
    """

    config: "Config"
    num_steps: int
    per_epoch: int
    num_data: int
    evaluate: Evaluate
    compiled: Compilations
    bar: tqdm
    curve: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)
    chunks: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    first_compilations: int = 0
    mark: float = dataclasses.field(default_factory=time.perf_counter)

    def __call__(self, seen: vj.Progress) -> None:
        """Between two chunks."""
        if not self.chunks:
            self.first_compilations = self.compiled.count
        done = sum(steps for steps, _ in self.chunks)
        self.chunks.append((seen.step - done, time.perf_counter() - self.mark))
        epoch, apart = seen.step / self.per_epoch, self.config.epochs / CURVE_POINTS
        if not self.curve or epoch - self.curve[-1][0] >= apart or seen.step == self.num_steps:
            self.curve.append((epoch, *self.evaluate(seen.params)))
        self.bar.update(round(epoch) - self.bar.n)
        live, (_, train, test) = -seen.history.loss[-1] / self.num_data, self.curve[-1]
        self.bar.set_postfix_str(
            f"{self.config.objective} of a batch {live:.2f}, ELBO train {train:.2f} "
            f"test {test:.2f} nats per image"
        )
        self.mark = time.perf_counter()

    def seconds_per_step(self) -> float:
        """Median of the chunks after the first, which compiles."""
        usual = self.chunks[1:] or self.chunks
        return float(np.median([seconds / steps for steps, seconds in usual]))

    def compile_seconds(self) -> float:
        """The first chunk's time above a usual chunk's."""
        steps, seconds = self.chunks[0]
        return seconds - self.seconds_per_step() * steps


def curve_evaluator(key: Key, job: Job, guide: vj.Guide, test: HeldOut | None) -> Evaluate:
    """ELBO of both splits on fixed images and noise.

    Rows phi_i of test images are carried on from one evaluation to the next, theta frozen at its
    present value.
    """
    carried: list[PyTree] = [None]
    train_x, test_x = job.scored_train, job.scored_test

    def elbo(guide: vj.Guide, params: vj.Params, x: Array) -> float:
        return float(np.mean(score(key, job.model, guide, params, x, CURVE_SAMPLES).elbo))

    def evaluate(params: vj.Params) -> tuple[float, float]:
        if test is None:
            return elbo(guide, params, train_x), elbo(guide, params, test_x)
        fitted = test.fit(key, params, carried[0], CURVE_TEST_STEPS)
        carried[0] = fitted.phi
        return elbo(guide, params, train_x), elbo(test.guide, fitted, test_x)

    return evaluate
