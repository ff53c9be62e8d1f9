"""Eight schools, the textbook hierarchical study, in its non-centred form."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vijax import densities
from vijax.inference import Model
from vijax.models.base import bayes_model
from vijax.models.normal_prior import check_positive
from vijax.types import Array, Key, PyTree, Scalar

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
STANDARD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def eight_schools(*, mean_scale: float = 5.0, spread_scale: float = 5.0) -> Model:
    """Coaching effects in eight schools. Rubin 1981, table 1; non-centred as in Gelman et al. 2013,
    section 5.5.

    mean ~ Normal(0, mean_scale^2), spread ~ HalfCauchy(spread_scale), noise_j ~ Normal(0, 1),
    effect_j ~ Normal(mean + spread noise_j, standard_error_j^2).

    theta: (). w: [10] = (mean, log spread, noise_1..noise_8), unconstrained, the Jacobian of the
    log included. One datum is a whole study, x: {"effect": [8], "standard_error": [8]}, in test
    points; `eight_schools_data()` has N = 1.

    Args:
      mean_scale: of the mean's prior, in test points.
      spread_scale: of the spread's prior, in test points.
    """
    check_positive("eight_schools", mean_scale=mean_scale, spread_scale=spread_scale)
    log_mean_scale, log_spread_scale = math.log(mean_scale), math.log(spread_scale)
    num_schools = len(EFFECTS)

    def log_prior(theta: PyTree, w: Array) -> Scalar:
        chex.assert_shape(w, (num_schools + 2,))
        scaled = w[1] - log_spread_scale
        # Half-Cauchy in t = log(spread / scale): 2 / pi e^t / (1 + e^2t), the Jacobian e^t
        # included.
        log_spread = math.log(2.0 / math.pi) + scaled - jax.nn.softplus(2.0 * scaled)
        log_noise = jnp.sum(densities.standard_normal(w[2:]))
        return densities.normal(w[0], 0.0, log_mean_scale) + log_spread + log_noise

    def log_lik(theta: PyTree, w: Array, x: PyTree) -> Scalar:
        loc = w[0] + jnp.exp(w[1]) * w[2:]
        return jnp.sum(densities.normal(x["effect"], loc, jnp.log(x["standard_error"])))

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, PyTree]:
        key_mean, key_spread, key_noise, key_x = jax.random.split(key, 4)
        mean = mean_scale * jax.random.normal(key_mean)
        log_spread = jnp.log(spread_scale * jnp.abs(jax.random.cauchy(key_spread)))
        w = jnp.concatenate(
            [jnp.stack([mean, log_spread]), jax.random.normal(key_noise, (num_schools,))]
        )
        error = jnp.tile(jnp.asarray(STANDARD_ERRORS), (num_data, 1))
        effect = (w[0] + jnp.exp(w[1]) * w[2:])[None, :] + error * jax.random.normal(
            key_x, error.shape
        )
        return w, {"effect": effect, "standard_error": error}

    return bayes_model(log_prior, log_lik, simulate=simulate)


def eight_schools_data() -> PyTree:
    """The study of Rubin 1981, as one datum: {"effect": [1, 8], "standard_error": [1, 8]}, in test
    points.
    """
    return {"effect": np.array([EFFECTS]), "standard_error": np.array([STANDARD_ERRORS])}
