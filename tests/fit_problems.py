"""Small problems that the tests of the loop and of the algorithms share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from vijax import densities

N, D = 12, 2
ADAM = optax.adam(0.05)
KEY = jax.random.key(5)
DATA = jax.random.normal(jax.random.key(1), (N, D)) + 1.0


def log_local(theta, z, x):
    """Prior z ~ Normal(0, I), x | z ~ Normal(z + theta, I)."""
    prior = jnp.sum(densities.standard_normal(z))
    return prior + jnp.sum(densities.standard_normal(x - z - theta))


def local_estimator():
    model = vj.models.latent_model(lambda key: jnp.zeros(D), log_local)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(D), N)
    return vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=N)


def global_model():
    return vj.models.bayes_model(
        lambda theta, w: jnp.sum(densities.standard_normal(w)),
        lambda theta, w, x: jnp.sum(densities.standard_normal(x - w)),
    )


def global_estimator(num_data=N):
    guide = vj.guides.shared(vj.families.diag_normal(D))
    return vj.estimator(global_model(), guide, rules=vj.rules.pathwise(), num_data=num_data)


GLOBAL, LOCAL = global_estimator(), local_estimator()
START, TABLE = GLOBAL.init_params(jax.random.key(0)), LOCAL.init_params(jax.random.key(0))
SHARED, ROWS = vj.descent(GLOBAL, ADAM), vj.descent(LOCAL, ADAM)


def assert_same(a, b):
    """Bitwise equal."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def bad_data():
    """A NaN in row 7."""
    return DATA.at[7, 1].set(jnp.nan)
