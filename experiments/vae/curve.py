"""A point of the learning curve: what it is, and how it is measured."""

import dataclasses
from typing import NamedTuple

import numpy as np

import vijax as vj
from experiments.common.images import score
from experiments.vae.held_out import HeldOut
from experiments.vae.problem import Job
from vijax.types import Array, Key, PyTree

CURVE_SAMPLES = 10  # per image: their noise averages out over the images
CURVE_TEST_STEPS = 100  # of phi_i of test images, from where they were


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


@dataclasses.dataclass
class Evaluate:
    """ELBO of both splits on fixed images and noise, as columns of `Point`.

    Attributes:
      carried: rows phi_i of test images, which go on from one evaluation to the next, theta frozen
        at its present value.
    """

    key: Key
    job: Job
    guide: vj.Guide
    test: HeldOut | None
    carried: PyTree = None

    def __call__(self, params: vj.Params) -> dict[str, float]:
        """Under these parameters."""
        train = self._elbo("train", self.guide, params, self.job.scored_train)
        guide, fitted = self.guide, params
        if self.test is not None:
            guide = self.test.guide
            fitted = self.test.fit(self.key, params, self.carried, CURVE_TEST_STEPS)
            self.carried = fitted.phi
        return train | self._elbo("test", guide, fitted, self.job.scored_test)

    def _elbo(self, split: str, guide: vj.Guide, params: vj.Params, x: Array) -> dict[str, float]:
        each = score(self.key, self.job.model, guide, params, x, CURVE_SAMPLES).elbo
        error = float(np.std(each, ddof=1) / len(each) ** 0.5)
        return {f"{split}_elbo": float(np.mean(each)), f"{split}_elbo_images_se": error}
