"""Logs of gamma variables, differentiable in the shape, for shapes so small that the variables
themselves are no floats.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from vijax.types import Array, Key


def log_gamma(key: Key, shape: Array) -> Array:
    """Log z, z ~ Gamma(shape, 1), elementwise, in the dtype of `shape`. Implicit differentiation,
    Figurnov et al. 2018.
    """
    return with_slope_of_small(jax.random.loggamma(key, shape, dtype=shape.dtype), shape)


@jax.custom_jvp
def with_slope_of_small(log_z: Array, shape: Array) -> Array:
    """Log z, whose derivative in the shape is by formula where z is small.

    There F(z) = z^a (1 - a z / (a + 1)) / Gamma(a + 1) up to rounding, so that dlog z/da
    = -(dF/da) / (dF/dlog z) keeps its digits; `jax.random` takes it at exp(log z), which is 0 below
    1e-38 in float32.
    """
    return log_z


@with_slope_of_small.defjvp
def _with_slope_of_small_jvp(primals, tangents):
    (log_z, shape), (log_z_dot, shape_dot) = primals, tangents
    small = log_z < 0.5 * jnp.log(jnp.finfo(log_z.dtype).eps)
    near = jnp.where(small, log_z, 0.0)  # where it is not, no inf may meet a zero derivative
    z = jnp.where(small, jnp.exp(near), 0.0)
    past = digamma(shape + 1.0) + z / jnp.square(shape + 1.0) - near
    slope = past / (shape * (1.0 - z / (shape + 1.0)))
    return log_z, jnp.where(small, slope * shape_dot, log_z_dot)
