"""The comparisons of `vijax.testing` that every test file uses, and what only the tests may do: two
dtypes on the same noise.
"""

import contextlib

import jax
import jax.numpy as jnp

from vijax.testing.averages import (
    FAST_COMPILE,
    assert_close,
    assert_partition,
    assert_same_bits,
    assert_unbiased,
    compiled,
    in_float,
)

__all__ = [
    "FAST_COMPILE",
    "assert_close",
    "assert_partition",
    "assert_same_bits",
    "assert_unbiased",
    "compiled",
    "float64_on_float32_noise",
    "in_float",
]


@contextlib.contextmanager
def float64_on_float32_noise():
    """Float64 arithmetic on the noise that float32 would draw: the two dtypes can then be compared
    draw by draw.
    """
    real = {name: getattr(jax.random, name) for name in ("normal", "uniform", "gumbel")}

    def coarse(name):
        return lambda key, shape=(): real[name](key, shape, jnp.float32).astype(
            jnp.result_type(float)
        )

    with in_float(64), contextlib.ExitStack() as undo:
        for name in real:
            setattr(jax.random, name, coarse(name))
            undo.callback(setattr, jax.random, name, real[name])
        yield
