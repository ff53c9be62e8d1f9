"""Training with a learning curve of both splits."""

import dataclasses
import time
from collections.abc import Callable, Iterator
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

Evaluate = Callable[[vj.Params], dict[str, float]]
"""Params -> ELBO of both splits, as columns of `Point`."""


class Point(NamedTuple):
    """A point of the learning curve; the columns of history.csv.

    Attributes:
      samples_seen: training images used, repetitions included: steps times the batch.
      seconds: of training until here, compilation and evaluations left out.
      bound: the objective that is trained, of the last recorded minibatch, nats per image.
      train_elbo: of fixed training images and noise, nats per image.
      train_elbo_images_se: its standard error over images.
      test_elbo: of fixed test images.
      test_elbo_images_se: standard error.
    """

    step: int
    epoch: float
    samples_seen: int
    seconds: float
    bound: float
    train_elbo: float
    train_elbo_images_se: float
    test_elbo: float
    test_elbo_images_se: float


class Learner(NamedTuple):
    """What a training needs beside its key."""

    guide: vj.Guide
    estimator: vj.Estimator
    algorithm: vj.Algorithm
    num_steps: int


class Trained(NamedTuple):
    """A trained model, and how it went.

    Attributes:
      history: one row per evaluation of the learning curve, see `Point`.
      epochs: taken, in all.
      compilations: until the first chunk's result was read.
      compile_seconds: first chunk's time above a usual chunk's: initialisation, tracing and
        compiling.
      seconds_per_epoch: median, without the learning curve's evaluations.
      seconds: all of it.
    """

    guide: vj.Guide
    params: vj.Params
    history: list["Point"]
    epochs: float
    compilations: int
    compile_seconds: float
    seconds_per_epoch: float
    seconds: float
    interrupted: bool


def learner(config: "Config", job: Job) -> Learner:
    """What trains; made once, so that further seeds compile nothing."""
    num_data = len(job.train_x)
    num_steps = config.epochs * steps_per_epoch(num_data, config.batch_size)
    guide = make_guide(config, job.train_x)
    estimator = make_estimator(job, guide, num_data)
    estimator = binarized(estimator) if config.binarize == "dynamic" else estimator
    algorithm = vj.descent(
        estimator,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
        rows=vj.rowwise.adam(optax.cosine_decay_schedule(config.row_learning_rate, num_steps)),
    )
    return Learner(guide, estimator, algorithm, num_steps)


def train(
    key: Key, config: "Config", job: Job, learn: Learner, test: HeldOut | None, what: str
) -> Iterator[Trained]:
    """Fit theta and phi on the training images; yields how far it is at every point of the learning
    curve, and where a signal ends it.

    Args:
      test: from `held_out_fitter`.
      what: title of the progress bar.
    """
    num_data, per_epoch = len(job.train_x), learn.num_steps // config.epochs
    chunk_size = max(1, min(100, learn.num_steps // 4))
    part = -(-config.epochs * per_epoch // CURVE_POINTS // chunk_size) * chunk_size
    init_key, fit_key, curve_key = jax.random.split(key, 3)
    evaluate = curve_evaluator(curve_key, job, learn.guide, test)
    bar, result = harness.progress_bar(config.epochs, what, "epoch"), None
    with compilations() as compiled, bar:
        watch = Watch(config, learn.num_steps, per_epoch, num_data, evaluate, compiled, bar)
        began = watch.mark
        while result is None or (result.num_steps < learn.num_steps and not result.interrupted):
            done = 0 if result is None else result.num_steps
            watch.mark = time.perf_counter()
            result = vj.fit(
                fit_key,
                learn.algorithm,
                learn.estimator.init_params(init_key) if result is None else None,
                job.train_x,
                num_steps=min(part, learn.num_steps - done),
                batch_size=config.batch_size,
                record_every=chunk_size,
                chunk_size=chunk_size,
                callbacks=[watch],
                resume=result,
            )
            yield watch.trained(learn, result, time.perf_counter() - began)


@dataclasses.dataclass
class Watch:
    """The callback of the fit: times its chunks, evaluates the learning curve, moves the bar.

    Attributes:
      curve: every evaluation.
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
    curve: list[Point] = dataclasses.field(default_factory=list)
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
        live = -float(seen.history.loss[-1]) / self.num_data
        last = seen.step == self.num_steps
        if not self.curve or epoch - self.curve[-1].epoch >= apart or last:
            self.curve.append(self.point(seen, live))
        self.bar.update(round(epoch) - self.bar.n)
        self.bar.set_postfix_str(
            f"{self.config.objective} of a batch {live:.2f}, ELBO train "
            f"{self.curve[-1].train_elbo:.2f} test {self.curve[-1].test_elbo:.2f} nats per image"
        )
        self.mark = time.perf_counter()

    def point(self, seen: vj.Progress, bound: float) -> Point:
        """The learning curve here."""
        return Point(
            step=seen.step,
            epoch=seen.step / self.per_epoch,
            samples_seen=seen.step * self.config.batch_size,
            seconds=sum(seconds for _, seconds in self.chunks),
            bound=bound,
            **self.evaluate(seen.params),
        )

    def trained(self, learn: Learner, result: vj.FitResult, seconds: float) -> Trained:
        """How far it is."""
        compiling = self.compile_seconds()
        return Trained(
            guide=learn.guide,
            params=result.params,
            history=[one._replace(seconds=one.seconds - compiling) for one in self.curve],
            epochs=result.num_steps / self.per_epoch,
            compilations=self.first_compilations,
            compile_seconds=compiling,
            seconds_per_epoch=self.seconds_per_step() * self.per_epoch,
            seconds=seconds,
            interrupted=result.interrupted,
        )

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

    def elbo(split: str, guide: vj.Guide, params: vj.Params, x: Array) -> dict[str, float]:
        each = score(key, job.model, guide, params, x, CURVE_SAMPLES).elbo
        error = float(np.std(each, ddof=1) / len(each) ** 0.5)
        return {f"{split}_elbo": float(np.mean(each)), f"{split}_elbo_images_se": error}

    def evaluate(params: vj.Params) -> dict[str, float]:
        train = elbo("train", guide, params, train_x)
        if test is None:
            return train | elbo("test", guide, params, test_x)
        fitted = test.fit(key, params, carried[0], CURVE_TEST_STEPS)
        carried[0] = fitted.phi
        return train | elbo("test", test.guide, fitted, test_x)

    return evaluate
