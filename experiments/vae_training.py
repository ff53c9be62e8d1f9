"""The working parts of `experiments.vae`: guides, training with a learning curve, inference for
test images, scores.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from experiments import harness
from vijax.diagnostics import Evidence
from vijax.fit import Progress
from vijax.minibatch import steps_per_epoch
from vijax.types import Array, Key

CURVE_POINTS = 30
CURVE_SAMPLES = 10  # per image: their noise averages out over the images
BLOCK = 128  # images scored by one call
CURVE_TEST_STEPS = 100  # of phi_i of test images, from where they were


class Trained(NamedTuple):
    """A trained model, and how it went.

    Attributes:
      epoch: [T]
      train_curve: [T] ELBO, nats per image
      test_curve: [T]
      compilations: until the first chunk's result was read: its steps take 3, the reading a few
        small ones
      compile_seconds: first chunk's time above a usual chunk's: initialisation, tracing and
        compiling
      seconds_per_epoch: median, without the learning curve's evaluations
      seconds: all of it
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


def make_guide(config: Any, model: vj.Model, x: Array) -> vj.Guide:
    """q(z_i) for the images x [N, P]: an encoder of x_i, or a row of a table."""
    family = vj.families.diag_normal(config.latent_dim)
    if config.guide == "per_datapoint":
        return vj.guides.per_datapoint(family, num_data=len(x))
    return vj.guides.amortized(family, vj.models.Mlp(config.widths, 2 * config.latent_dim), x=x[0])


def make_estimator(job: Any, guide: vj.Guide, num_data: int) -> vj.Estimator:
    """The one estimator of the job, for either guide and either split."""
    return vj.estimator(
        job.model,
        guide,
        objective=job.objective,
        rules=job.rule,
        num_samples=job.num_samples,
        num_data=num_data,
    )


def binarized(estimator: vj.Estimator) -> vj.Estimator:
    """The estimator on a new Bernoulli draw of every image at every visit: dynamic binarization,
    Burda et al. 2016.
    """

    def visit(method):
        def estimate(key, params, state, batch):
            key_x, key_z = jax.random.split(key)
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_x, batch.index)
            x = jax.vmap(lambda key, grey: jax.random.bernoulli(key, grey).astype(grey.dtype))(
                keys, batch.x
            )
            return method(key_z, params, state, batch._replace(x=x))

        return estimate

    return estimator._replace(
        estimate=visit(estimator.estimate), estimate_rows=visit(estimator.estimate_rows)
    )


def train(key: Key, config: Any, job: Any, test: "HeldOut | None") -> Trained:
    """Fit theta and phi on the training images, with a learning curve of both splits; `test` from
    `held_out_fitter`.
    """
    num_data = len(job.train_x)
    per_epoch = steps_per_epoch(num_data, config.batch_size)
    num_steps = config.epochs * per_epoch
    chunk_size = max(1, min(100, num_steps // 4))
    guide = make_guide(config, job.model, job.train_x)
    estimator = make_estimator(job, guide, num_data)
    estimator = binarized(estimator) if config.binarize == "dynamic" else estimator
    init_key, fit_key, curve_key = jax.random.split(key, 3)
    evaluate = curve_evaluator(curve_key, job, guide, test)
    curve: list[tuple[float, float, float]] = []
    to_first_look: list[int] = []
    chunks: list[tuple[int, float]] = []  # steps, seconds
    bar = harness.progress_bar(config.epochs, "train", "epoch")
    with harness.compilations() as compiled, bar:
        began = mark = time.perf_counter()

        def watch(seen: Progress) -> None:
            nonlocal mark
            to_first_look.append(compiled.count)
            steps_before = sum(steps for steps, _ in chunks)
            chunks.append((seen.step - steps_before, time.perf_counter() - mark))
            epoch = seen.step / per_epoch
            if (
                not curve
                or epoch - curve[-1][0] >= config.epochs / CURVE_POINTS
                or seen.step == num_steps
            ):
                curve.append((epoch, *evaluate(seen.params)))
            bar.update(round(epoch) - bar.n)
            live = -seen.history.loss[-1] / num_data
            elbos = f"ELBO train {curve[-1][1]:.2f} test {curve[-1][2]:.2f}"
            bar.set_postfix_str(f"{config.objective} of a batch {live:.2f}, {elbos} nats per image")
            mark = time.perf_counter()

        result = vj.fit(
            fit_key,
            estimator,
            optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
            estimator.init_params(init_key),
            job.train_x,
            num_steps=num_steps,
            batch_size=config.batch_size,
            row_optimizer=vj.rowwise.adam(
                optax.cosine_decay_schedule(config.row_learning_rate, num_steps)
            ),
            record_every=chunk_size,
            chunk_size=chunk_size,
            callbacks=[watch],
        )
        seconds = time.perf_counter() - began
    per_step = float(np.median([time / steps for steps, time in chunks[1:] or chunks]))
    first_steps, first_seconds = chunks[0]
    epoch, train_curve, test_curve = np.asarray(curve).T
    return Trained(
        guide,
        result.params,
        epoch,
        train_curve,
        test_curve,
        to_first_look[0],
        first_seconds - per_step * first_steps,
        per_step * per_epoch,
        seconds,
        result.interrupted,
    )


def curve_evaluator(key: Key, job: Any, guide: vj.Guide, test: "HeldOut | None"):
    """Params -> ELBO of (train, test) in nats per image, on fixed images and noise.

    Rows phi_i of test images are carried on from one evaluation to the next, theta frozen at its
    present value.
    """
    phi: list[Any] = []
    train_x, test_x = job.scored_train, job.scored_test

    def elbo(guide: vj.Guide, params: vj.Params, x: Array) -> float:
        return float(
            np.mean(np.asarray(score(key, job.model, guide, params, x, CURVE_SAMPLES).elbo))
        )

    def evaluate(params: vj.Params) -> tuple[float, float]:
        if test is None:
            return elbo(guide, params, train_x), elbo(guide, params, test_x)
        phi[:] = [test.fit(key, params, phi[0] if phi else None, CURVE_TEST_STEPS).phi]
        return elbo(guide, params, train_x), elbo(test.guide, params._replace(phi=phi[0]), test_x)

    return evaluate


class HeldOut(NamedTuple):
    """Rows phi_i for test images; one compilation serves the learning curve and the final fit.

    Attributes:
      fit: (key, params, phi or None for new rows, steps) -> params with phi fitted, theta as it was
    """

    guide: vj.Guide
    fit: Callable[..., vj.Params]


def held_out_fitter(config: Any, job: Any) -> HeldOut | None:
    """Inference for the test images with theta frozen; None for an encoder, which needs none."""
    if config.guide == "amortized":
        return None
    guide = make_guide(config, job.model, job.scored_test)
    estimator = make_estimator(job, guide, len(job.scored_test))
    frozen = optax.set_to_zero()
    rows = vj.rowwise.adam(optax.cosine_decay_schedule(config.row_learning_rate, config.test_steps))

    def fit(key: Key, params: vj.Params, phi: Any, steps: int) -> vj.Params:
        start = params._replace(phi=jax.jit(guide.init)(key) if phi is None else phi)
        return vj.fit(
            key,
            estimator,
            frozen,
            start,
            job.scored_test,
            num_steps=steps,
            row_optimizer=rows,
            record_every=50,
            chunk_size=50,
        ).params

    return HeldOut(guide, fit)


def infer_test(
    key: Key, config: Any, test: HeldOut | None, trained: Trained
) -> tuple[vj.Guide, vj.Params]:
    """Guide and params for the test images: the encoder as it is, or new rows phi_i fitted with
    theta frozen.
    """
    if test is None:
        return trained.guide, trained.params
    return test.guide, test.fit(key, trained.params, None, config.test_steps)


def score(
    key: Key,
    model: vj.Model,
    guide: vj.Guide,
    params: vj.Params,
    x: Array,
    num_samples: int,
    what: str | None = None,
) -> Evidence:
    """`diagnostics.log_evidence` of the images x [M, P], the first M rows, in blocks of one size.

    Args:
      what: title of a progress bar; None for none.
    """
    block, parts = min(BLOCK, len(x)), []
    with harness.progress_bar(len(x), what, "image") as bar:
        for first in range(0, len(x), block):
            # The last block reaches back, so that no other size is compiled
            begin = min(first, len(x) - block)
            batch = vj.Batch(x[begin : begin + block], jnp.arange(begin, begin + block))
            chunk = math.gcd(block, 16)
            scores = vj.diagnostics.log_evidence(
                key, model, guide, params, batch, num_samples=num_samples, chunk_size=chunk
            )
            parts.append(
                jax.tree.map(lambda leaf, skip=first - begin: np.asarray(leaf)[skip:], scores)
            )
            bar.update(len(parts[-1].elbo))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def posterior_means(guide: vj.Guide, params: vj.Params, x: Array) -> Array:
    """[M, D] means of q(z_i) for the images x [M, P]."""
    is_table = guide.tables(params.phi)
    rows = jax.tree.map(lambda table: 0 if table else None, is_table)
    return jax.jit(jax.vmap(lambda phi, x: guide.locate_z(phi, x)["loc"], in_axes=(rows, 0)))(
        params.phi, x
    )


def summarize(train: Evidence, test: Evidence) -> dict[str, Any]:
    """Means in nats per image, each with the standard error over images; the evidence also with
    that of its samples.
    """
    gap = test.log_evidence - test.elbo
    named = {
        "train_elbo": train.elbo,
        "test_elbo": test.elbo,
        "test_log_evidence": test.log_evidence,
        "gap": gap,
    }
    means = {name: float(np.mean(values)) for name, values in named.items()}
    errors = {
        f"{name}_images_se": float(np.std(values, ddof=1) / len(values) ** 0.5)
        for name, values in named.items()
    }
    error = np.asarray(test.standard_error)
    return (
        means
        | errors
        | {
            "test_log_evidence_sampling_se": float(np.sqrt(np.sum(error**2)) / len(error)),
            "share_uncertain": float(np.mean(error > 0.5)),
            "train_scored": len(train.elbo),
            "test_scored": len(test.elbo),
        }
    )
