"""Trainings of probabilistic PCA with exact evaluations: nothing about files or figures."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from vijax.algorithms import inner
from vijax.families import Kl, Moments, need
from vijax.types import Array, PyTree

if TYPE_CHECKING:
    from experiments.stochastic_vi.__main__ import Config


class Job(NamedTuple):
    """The problem.

    Attributes:
      x: [N, P].
      maximum: of log p(x) over theta, nats per datum.
    """

    model: vj.Model
    family: vj.Family
    x: Array
    maximum: float


class Run(NamedTuple):
    """One way to take inner steps.

    Attributes:
      policy: where rows start: "kept", "prior" or "encoder".
      steps: T, or the most of it.
      estimator: of the bound.
      algorithm: for `fit`.
      guide: of both.
      look: params -> (mean bound, mean evidence, posteriors), exact.
    """

    name: str
    policy: str
    steps: int
    estimator: vj.Estimator
    algorithm: vj.Algorithm
    guide: vj.Guide
    look: Callable[[vj.Params], tuple[Array, Array, "Posteriors"]]


class Point(NamedTuple):
    """A point of a run's path; bound and evidence in nats per datum, exact."""

    theta_steps: int
    gradients: int
    seconds: float
    bound: float
    evidence: float


class Posteriors(NamedTuple):
    """Means and standard deviations of every q and of its exact posterior, [N, D]."""

    mean: np.ndarray
    scale: np.ndarray
    exact_mean: np.ndarray
    exact_scale: np.ndarray


class Trained(NamedTuple):
    """A run and where it went; `local_steps` is the mean T."""

    name: str
    policy: str
    local_steps: float
    path: list[Point]
    posteriors: Posteriors


def build(config: "Config") -> Job:
    """Data of the model itself, its loadings of size one."""
    model = vj.models.probabilistic_pca(config.observed_dim, config.latent_dim)
    theta_key, data_key = jax.random.split(jax.random.key(config.seed))
    theta = {
        "weights": jax.random.normal(theta_key, (config.observed_dim, config.latent_dim)),
        "bias": jnp.zeros(config.observed_dim),
        "log_noise": jnp.log(config.noise_scale),
    }
    _, x = model.simulate(data_key, theta, config.num_data)  # type: ignore  # it has one
    return Job(model, vj.families.full_normal(config.latent_dim), x, maximum(x, config.latent_dim))


def maximum(x: Array, latent_dim: int) -> float:
    """The largest log p(x) of probabilistic PCA, nats per datum. Tipping and Bishop 1999, eq. 7-8:
    the noise's variance is the mean of the eigenvalues that are left out.
    """
    data = np.asarray(x).astype(np.float64)
    centred = data - data.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred / len(centred))[::-1]
    noise = np.mean(eigenvalues[latent_dim:])
    log_det = np.sum(np.log(eigenvalues[:latent_dim])) + np.log(noise) * len(
        eigenvalues[latent_dim:]
    )
    return float(-0.5 * (len(eigenvalues) * (np.log(2.0 * np.pi) + 1.0) + log_det))


def runs(config: "Config", job: Job) -> list[Run]:
    """Kept rows for every T and until the bound stops rising; then the two restarts."""
    most, one = max(config.local_steps), table(config, job)
    kept = [one(f"kept, T = {t}", inner(t)) for t in config.local_steps]
    kept.append(one(f"kept, until, T <= {most}", inner(most, tolerance=config.tolerance)))
    like = jax.eval_shape(job.family.init, jax.random.key(0))
    prior = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), like)  # the standard normal
    start = inner(1, restart=lambda theta, x: prior)
    steps = config.restarted_steps
    restarted = [one(f"prior, T = {t}", start._replace(steps=t)) for t in steps]
    return kept + restarted + [encoder(config, job, t) for t in steps]


def table(config: "Config", job: Job) -> Callable[[str, Any], Run]:
    """(name, inner loop) -> a run with a row phi_i per datum."""
    guide = vj.guides.per_datapoint(job.family, config.num_data)
    estimator = vj.estimator(
        job.model, guide, rules=vj.rules.doubly_reparameterized(), num_data=config.num_data
    )
    rows, look = vj.rowwise.lazy(optax.adam(config.row_rate)), evaluator(config, job, guide)

    def one(name: str, local: Any) -> Run:
        optimizer = optax.adam(falling(config, local.steps))
        algorithm = vj.descent(estimator, optimizer, rows=rows, local_steps=local)
        policy = "kept" if local.restart is None else "prior"
        return Run(name, policy, local.steps, estimator, algorithm, guide, look)

    return one


def falling(config: "Config", steps: int) -> optax.Schedule:
    """Theta's rate, down to 0 at the run's end, so that q is not chasing it there."""
    return optax.cosine_decay_schedule(config.theta_rate, num_steps(config, steps))


def num_steps(config: "Config", steps: int) -> int:
    """Of theta, with `steps` gradients each."""
    return max(1, config.num_gradients // steps)


def encoder(config: "Config", job: Job, steps: int) -> Run:
    """Inner steps from a linear encoder's answer, which learns from what they reach."""
    size = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(job.family.init, jax.random.key(0)))
    )
    plain = vj.guides.amortized(
        job.family,
        (
            lambda key: {"w": jnp.zeros((size, config.observed_dim)), "b": jnp.zeros(size)},
            lambda phi, x: phi["w"] @ x + phi["b"],
        ),
    )
    rule = vj.rules.doubly_reparameterized()
    guide = vj.guides.semi_amortized(
        plain, steps, optax.adam(config.row_rate), through=False, rule=rule
    )
    estimator = vj.estimator(job.model, guide, rules=rule, num_data=config.num_data)
    algorithm = vj.descent(estimator, optax.adam(falling(config, steps)))
    look = evaluator(config, job, guide)
    return Run(f"encoder, T = {steps}", "encoder", steps, estimator, algorithm, guide, look)


def train(config: "Config", job: Job, run: Run) -> Trained:
    """`num_gradients` / T steps of theta, looked at now and then; seconds are of training alone,
    without compilation.
    """
    total = num_steps(config, run.steps)
    every = max(1, total // config.num_points)
    key = jax.random.key(config.seed + 1)
    params = run.estimator.init_params(jax.random.key(config.seed + 2))
    settings: Any = {"batch_size": config.batch_size, "chunk_size": every, "record_every": every}
    vj.fit(key, run.algorithm, params, job.x, num_steps=1, **settings)  # compiles
    path: list[Point] = []
    clock = [0.0, time.perf_counter()]  # seconds of training, when it was last gone on with

    def watch(progress: vj.Progress) -> None:
        now = progress.params  # ready, so that the time is the steps'
        jax.block_until_ready(now)
        clock[0] += time.perf_counter() - clock[1]
        bound, evidence, _ = run.look(now)
        taken = updates(progress.result.state, progress.step, run)
        path.append(Point(progress.step, taken, clock[0], float(bound), float(evidence)))
        clock[1] = time.perf_counter()

    result = vj.fit(
        key, run.algorithm, params, job.x, num_steps=total, callbacks=[watch], **settings
    )
    last = path[-1]
    seen = jax.tree.map(np.asarray, run.look(result.params)[2])
    return Trained(run.name, run.policy, last.gradients / last.theta_steps, path, seen)


def updates(state: vj.algorithms.DescentState, theta_steps: int, run: Run) -> int:
    """Inner steps taken so far: a table's clock counts them."""
    return theta_steps * run.steps if run.guide.num_data is None else int(state.clock)


def evaluator(
    config: "Config", job: Job, guide: vj.Guide
) -> Callable[[vj.Params], tuple[Array, Array, Posteriors]]:
    """Params -> (mean bound, mean evidence, posteriors); exact given q, which inner steps of an
    encoder reach by the noise of one key.
    """
    batch = vj.Batch(job.x, jnp.arange(config.num_data))
    kl, moments = need(job.family, Kl).value, need(job.family, Moments)
    key = jax.random.key(config.seed + 3)

    @jax.jit
    def look(params: vj.Params) -> tuple[Array, Array, Posteriors]:
        def integrand(x: Array) -> Callable[[vj.Sample], Array]:
            return lambda s: job.model.log_local(params.theta, None, s.z, x) - s.log_q  # type: ignore

        def body(key: Array, q: vj.Q, f: Any, x: Array) -> tuple[Array, Array, PyTree]:
            exact = job.model.posterior(params.theta, x)  # type: ignore  # it has one
            evidence = job.model.log_evidence(params.theta, x)  # type: ignore  # it has one
            seen = [(moments.mean(lam), moments.variance(lam) ** 0.5) for lam in (q.lam, exact)]
            return evidence - kl(q.lam, exact), evidence, Posteriors(*seen[0], *seen[1])

        bound, evidence, seen = vj.guides.over_data(guide, params.phi, key, batch, integrand, body)
        return jnp.mean(bound), jnp.mean(evidence), seen

    return look
