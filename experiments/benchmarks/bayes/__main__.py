"""How far is `fit` from a hand-written loop where a step takes microseconds?

Global latents: mean-field and full-rank logistic regression (breast cancer, 569 x 30; synthetic,
569 x 200), eight schools, minibatches of 256 out of 100,000, and 1,000 gradient draws. The
hand-written loops have their derivatives worked out on paper; both sides use Adam and as many
samples. Expected: ratios below the column `must`.

    python -m experiments.benchmarks.bayes
"""

from collections.abc import Callable, Iterator
from typing import Any

from experiments.benchmarks.common.pairs import (  # isort: skip  (before jax)
    Config,
    Row,
    compare,
    hand_loop,
    normal_noise,
    script,
)

import jax
import jax.numpy as jnp
import optax

import vijax as vj
from experiments.benchmarks.bayes.logistic import (
    Regression,
    cancer,
    full_rank_gradient,
    logistic_model,
    logistic_score,
    mean_field_gradient,
    synthetic,
)

ADAM = optax.adam(0.01)
KEY = jax.random.key(1)


def fit_against(
    name: str,
    family: vj.Family,
    data: Any,
    gradient: Any,
    num_steps: int,
    must: float,
    pairs: int,
    *,
    k: int,
    model: vj.Model | None = None,
) -> Row:
    """One row: `fit` of a global latent against `hand_loop`."""
    num_data = jax.tree.leaves(data)[0].shape[0]
    model = logistic_model() if model is None else model
    estimator = vj.estimator(
        model, vj.guides.shared(family), rules=vj.rules.pathwise(), num_samples=k, num_data=num_data
    )
    params, algorithm = estimator.init_params(jax.random.key(0)), vj.descent(estimator, ADAM)
    lam = params.phi["w"]
    loop = hand_loop(gradient, normal_noise(k, lam["loc"].shape[0]), ADAM, num_steps)
    return compare(
        name,
        lambda: vj.fit(KEY, algorithm, params, data, num_steps=num_steps).params,
        lambda: loop(KEY, lam, data),
        num_steps=num_steps,
        must=must,
        pairs=pairs,
    )


def schools_log_joint(w: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    """Eight schools, non-centred (Rubin 1981): w = (mu, log tau, eta_1..8), up to a constant."""
    mu, log_tau, eta = w[0], w[1], w[2:]
    prior = -0.5 * (jnp.square(mu / 5.0) + jnp.square(log_tau) + jnp.sum(jnp.square(eta)))
    return prior - 0.5 * jnp.sum(jnp.square((y - mu - jnp.exp(log_tau) * eta) / s))


def eight_schools(config: Config) -> Row:
    """All eight schools are one datum of the model, whose latent holds them all."""
    y = jnp.asarray([[28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]])
    s = jnp.asarray([[15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]])
    model = vj.models.bayes_model(
        lambda theta, w: jnp.zeros(()), lambda theta, w, x: schools_log_joint(w, *x)
    )

    def score(z: jax.Array, data: Any) -> jax.Array:
        """[K, 10], by hand."""
        y, s = data
        mu, tau, eta = z[:, :1], jnp.exp(z[:, 1:2]), z[:, 2:]
        residual = (y - mu - tau * eta) / jnp.square(s)
        slope_mu = jnp.sum(residual, axis=1, keepdims=True) - mu / 25.0
        slope_tau = tau * jnp.sum(residual * eta, axis=1, keepdims=True) - z[:, 1:2]
        return jnp.concatenate([slope_mu, slope_tau, tau * residual - eta], axis=1)

    return fit_against(
        "eight schools K=10",
        vj.families.diag_normal(10),
        (y, s),
        mean_field_gradient(score),
        19200,
        1.5,
        config.pairs,
        k=10,
        model=model,
    )


def minibatches(
    config: Config, num_data: int = 100_000, size: int = 256, num_steps: int = 3200
) -> Row:
    """`fit` draws without replacement; the hand-written loop, with it, which is the cheapest there
    is.
    """
    data = synthetic(num_data, 30)
    estimator = vj.estimator(
        logistic_model(),
        vj.guides.shared(vj.families.diag_normal(30)),
        rules=vj.rules.pathwise(),
        num_data=num_data,
    )
    params, algorithm = estimator.init_params(jax.random.key(0)), vj.descent(estimator, ADAM)

    def gradient(lam: Any, noise: Any, data: Regression) -> Any:
        batch = Regression(data.x[noise[1]], data.y[noise[1]])
        by_hand = mean_field_gradient(lambda z: logistic_score(z, batch, num_data / size))
        return by_hand(lam, noise[0])

    def draw(key: jax.Array, steps: int) -> Any:
        keys = jax.random.split(key)
        index = jax.random.randint(keys[1], (steps, size), 0, num_data)
        return jax.random.normal(keys[0], (steps, 1, 30)), index

    def ours() -> vj.Params:
        return vj.fit(KEY, algorithm, params, data, num_steps=num_steps, batch_size=size).params

    loop = hand_loop(gradient, draw, ADAM, num_steps)
    return compare(
        f"minibatch logistic N={num_data:,}",
        ours,
        lambda: loop(KEY, params.phi["w"], data),
        num_steps=num_steps,
        must=1.25,
        pairs=config.pairs,
    )


def gradient_draws(config: Config, num_draws: int = 1000) -> Row:
    """`lab.gradient_report` against all draws at once by hand, and their mean and variance. A
    `step` is one draw.
    """
    data, state = cancer(), {"w": ()}
    estimator = vj.estimator(
        logistic_model(),
        vj.guides.shared(vj.families.diag_normal(30)),
        rules=vj.rules.pathwise(),
        num_data=569,
    )
    params, batch = estimator.init_params(jax.random.key(0)), vj.Batch(data, jnp.arange(569))

    @jax.jit
    def ideal(key: jax.Array, lam: Any, data: Regression) -> Any:
        noise = jax.random.normal(key, (num_draws, 30))
        scale = jnp.exp(lam["log_scale"])
        slope = logistic_score(lam["loc"] + scale * noise, data)
        grads = {"loc": -slope, "log_scale": -scale * slope * noise - 1.0}
        return jax.tree.map(lambda g: (g.mean(0), g.var(0, ddof=1)), grads)

    return compare(
        "1,000 gradient draws",
        lambda: vj.lab.gradient_report(KEY, estimator, params, state, batch, num_draws=num_draws),
        lambda: ideal(KEY, params.phi["w"], data),
        num_steps=num_draws,
        must=1.3,
        pairs=config.pairs,
    )


def workloads(config: Config) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Name and timing of each."""
    for k, num_steps, must in ((1, 3200, 1.3), (10, 1280, 1.25), (100, 256, 1.25)):
        name = f"mean-field logistic K={k}"
        yield (
            name,
            lambda name=name, k=k, n=num_steps, must=must: fit_against(
                name,
                vj.families.diag_normal(30),
                cancer(),
                mean_field_gradient(logistic_score),
                n,
                must,
                config.pairs,
                k=k,
            ),
        )
    for dim, data, num_steps in ((30, cancer, 2560), (200, lambda: synthetic(569, 200), 512)):
        name = f"full-rank D={dim}"
        yield (
            name,
            lambda name=name, dim=dim, data=data, n=num_steps: fit_against(
                name,
                vj.families.full_normal(dim),
                data(),
                full_rank_gradient,
                n,
                1.25,
                config.pairs,
                k=1,
            ),
        )
    yield "eight schools K=10", lambda: eight_schools(config)
    yield "minibatch logistic", lambda: minibatches(config)
    yield "gradient draws", lambda: gradient_draws(config)


def rows(config: Config) -> Iterator[Row]:
    """Those that are asked for."""
    for name, run in workloads(config):
        if config.only in name:
            yield run()


if __name__ == "__main__":
    script(__doc__ or "", rows)
