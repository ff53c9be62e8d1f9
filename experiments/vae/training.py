"""Training with a learning curve of both splits."""

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm.auto import tqdm

import vijax as vj
from experiments.common import harness
from experiments.common.compilations import Compilations, compilations
from experiments.common.images import binarized
from experiments.vae.curve import Evaluate, Point
from experiments.vae.held_out import HeldOut
from experiments.vae.problem import Job, make_estimator, make_guide
from vijax.optimize import steps_per_epoch
from vijax.types import Key

if TYPE_CHECKING:
    from experiments.vae.__main__ import Config

CURVE_POINTS = 30


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
    history: list[Point]
    epochs: float
    compilations: int
    compile_seconds: float
    seconds_per_epoch: float
    seconds: float
    interrupted: bool


def learner(config: "Config", job: Job, guide: vj.Guide | None = None) -> Learner:
    """What trains; made once, so that further seeds compile nothing.

    Args:
      guide: None: the settings'.
    """
    num_data = len(job.train_x)
    num_steps = config.epochs * steps_per_epoch(num_data, config.batch_size)
    guide = make_guide(config, job.train_x) if guide is None else guide
    estimator = make_estimator(job, guide, num_data)
    estimator = binarized(estimator) if config.binarize == "dynamic" else estimator
    algorithm = vj.descent(
        estimator,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
        rows=vj.rowwise.adam(optax.cosine_decay_schedule(config.row_learning_rate, num_steps)),
    )
    return Learner(guide, estimator, algorithm, num_steps)


def train(
    key: Key,
    config: "Config",
    job: Job,
    learn: Learner,
    test: HeldOut | None,
    what: str,
    kept: vj.Checkpoint | None = None,
) -> Iterator[Trained]:
    """Fit theta and phi on the training images; yields how far it is at every point of the learning
    curve, and where a signal ends it.

    Args:
      test: from `held_out_fitter`.
      what: title of the progress bar.
      kept: from where it goes on.
    """
    num_data, per_epoch = len(job.train_x), learn.num_steps // config.epochs
    chunk_size = max(1, min(100, learn.num_steps // 4))
    part = -(-config.epochs * per_epoch // CURVE_POINTS // chunk_size) * chunk_size
    init_key, fit_key, curve_key = jax.random.split(key, 3)
    evaluate = Evaluate(curve_key, job, learn.guide, test)
    bar, result = harness.progress_bar(config.epochs, what, "epoch"), None
    with compilations() as compiled, bar:
        watch = Watch(config, learn.num_steps, per_epoch, num_data, evaluate, compiled, bar)
        while result is None or (result.num_steps < learn.num_steps and not result.interrupted):
            watch.mark = time.perf_counter()
            result = vj.fit(
                fit_key,
                learn.algorithm,
                learn.estimator.init_params(init_key) if result is None else None,
                job.train_x,
                num_steps=harness.steps_ahead(kept, result, part, learn.num_steps),
                batch_size=config.batch_size,
                record_every=chunk_size,
                chunk_size=chunk_size,
                callbacks=[watch],
                resume=result,
                checkpoint=kept,
            )
            yield watch.trained(learn, result)


@dataclasses.dataclass
class Watch:
    """The callback of the fit: times its chunks, evaluates the learning curve, moves the bar. It is
    kept with the run: what went before a restart is not evaluated again.

    Attributes:
      curve: every evaluation.
      chunks: (steps, seconds) of every chunk, without the evaluation after it.
      mark: when the present chunk began.
      began: when all of it did; as if it had been in this process.
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
    began: float = dataclasses.field(default_factory=time.perf_counter)

    def get_state(self) -> dict[str, Any]:
        """Everything that was measured."""
        return {
            "curve": [list(one) for one in self.curve],
            "chunks": [list(one) for one in self.chunks],
            "first_compilations": self.first_compilations,
            "seconds": time.perf_counter() - self.began,
            "carried": self.evaluate.carried,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """As it was then."""
        self.curve = [Point(*one) for one in state["curve"]]
        self.chunks = [(steps, seconds) for steps, seconds in state["chunks"]]
        self.first_compilations = state["first_compilations"]
        self.began = time.perf_counter() - state["seconds"]
        self.evaluate.carried = state["carried"]

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

    def trained(self, learn: Learner, result: vj.FitResult) -> Trained:
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
            seconds=time.perf_counter() - self.began,
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
