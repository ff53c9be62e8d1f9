"""The classical picture of EM, from numbers: bounds in one parameter that touch the log-likelihood,
one per E-step.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from experiments.em_mixture.problem import Problem, with_free
from vijax import rules
from vijax.algorithms import em
from vijax.testing.averages import compiled, quickly
from vijax.types import Array, Params, PyTree, Scalar

if TYPE_CHECKING:
    from experiments.em_mixture.__main__ import Config

NUM_BOUNDS = 4


def bounds(config: "Config", problem: Problem, theta: PyTree) -> dict[str, np.ndarray]:
    """The log-likelihood and the bound after each E-step as functions of the first coordinate of
    one component's mean, all else at EM's answer `theta`.

    Returns:
      place [G]; likelihood [G]; bounds [T, G]; touch [T], where the E-steps were taken, with
      touched [T], by EM's own loss, and there [T], by the log-likelihood; nats.
    """

    def at(value: Array) -> PyTree:
        return theta | {"loc": theta["loc"].at[1, 0].set(value)}

    model = with_free(problem.mixture, lambda theta, best: at(best["loc"][1, 0]))
    algorithm = em(model, problem.rows, num_data=config.num_data)
    est = vj.estimator(
        problem.mixture, problem.rows, rules=rules.enumerated(), num_data=config.num_data
    )
    batch, key = vj.Batch(problem.x, jnp.arange(config.num_data)), jax.random.key(0)
    best = float(theta["loc"][1, 0])
    start = best - 3.2
    grid = jnp.linspace(start - 0.6, best + 1.2, 241)

    def bound(value: Array, phi: PyTree) -> Scalar:
        params = Params(at(value), phi, {"z": ()})
        return -est.estimate(key, params, {"z": ()}, batch)[0].loss

    def likelihood(value: Array) -> Scalar:
        each = jax.vmap(lambda x: problem.mixture.log_evidence(at(value), x))  # pyright: ignore
        return jnp.sum(each(problem.x))

    params = Params(at(jnp.asarray(start)), {"z": problem.phi["z"]}, ())
    state = algorithm.init(key, params)
    step = quickly(algorithm.step, key, state, batch)
    curve = quickly(jax.vmap(bound, in_axes=(0, None)), grid, params.phi)
    touch, touched, curves = [], [], []
    for _ in range(NUM_BOUNDS):
        touch.append(float(algorithm.params(state).theta["loc"][1, 0]))
        state, info = step(key, state, batch)
        touched.append(-float(info.loss))
        curves.append(np.asarray(curve(grid, algorithm.params(state).phi)))
    return {
        "place": np.asarray(grid),
        "likelihood": compiled(jax.vmap(likelihood), grid),
        "there": compiled(jax.vmap(likelihood), jnp.array(touch)),
        "bounds": np.stack(curves),
        "touch": np.array(touch),
        "touched": np.array(touched),
    }
