"""Integrands f(theta, z) -> [] of the families' fixtures, defined at relaxed z too."""

import jax.numpy as jnp


def multilinear(table, bits):
    """The entry of a table at bits, extended to relaxed ones."""
    for bit in bits:
        table = table[0] * (1.0 - bit) + table[1] * bit
    return table


def square(theta, z):
    """Quadratic in a one-hot z."""
    return jnp.vdot(theta, z) + jnp.square(jnp.vdot(theta, z) - 0.4)


def curved(theta, z):
    """Of two real numbers, neither linear nor quadratic."""
    return theta[0] * jnp.sin(z[0]) + theta[1] * z[0] * z[1] - 0.1 * jnp.square(z[1])


def bounded(theta, z):
    """Of one positive or real number, neither linear nor quadratic; a second one, if there is one,
    joins in.
    """
    return theta[0] * jnp.sin(z[0]) + theta[1] * jnp.log1p(jnp.square(z[0]) + z[-1] * z[0])


def around(theta, z):
    """Of a real number, growing like a logarithm."""
    return theta[0] * jnp.sin(z[0]) + theta[1] * jnp.log1p(jnp.square(z[0] - 0.5))


def turning(theta, z):
    """Of an angle, continuous on the circle."""
    return theta[0] * jnp.sin(z[0]) + theta[1] * jnp.cos(2.0 * z[0])


def near_class(theta, z):
    """Of a class and a number near that class's own."""
    return -0.5 * jnp.square(z["z"][0] - z["c"] @ theta)
