"""Minibatches drawn without replacement in O(batch), by a keyed bijection of [0, N)."""

import math

import jax
import jax.numpy as jnp

from vijax.types import Array, Key

ROUNDS = 8
SMALL = 256  # up to here every permutation is equally likely; a network of so few states is uneven


def steps_per_epoch(num_data: int, batch_size: int) -> int:
    """Minibatches that visit every datum at least once."""
    return -(-num_data // batch_size)


def rows_of_step(key: Key, step: Array, *, num_data: int, batch_size: int) -> Array:
    """[B] the rows that `fit` with this key draws for a step."""
    rows_key = jax.random.fold_in(key, 0)
    return batch_index(rows_key, step, num_data=num_data, batch_size=batch_size)


def batch_index(key: Key, step: Array, *, num_data: int, batch_size: int) -> Array:
    """[B] distinct rows for optimisation step `step`; a pure function of (key, step).

    Each epoch is a fresh pseudo-random permutation cut into batches. Where B does not divide N, the
    last batch reaches back into the previous one so that it is full: every batch is a uniform
    sample without replacement, hence unbiased, and every datum is visited in every epoch.

    Args:
      key: the same for the whole run.
      step: [] int.
    """
    per_epoch = steps_per_epoch(num_data, batch_size)
    epoch, turn = step // per_epoch, step % per_epoch
    start = jnp.minimum(turn * batch_size, num_data - batch_size)
    return permute(jax.random.fold_in(key, epoch), start + jnp.arange(batch_size), num_data)


def permute(key: Key, position: Array, num_data: int) -> Array:
    """A keyed bijection of [0, num_data), elementwise on integer positions.

    An alternating Feistel network on Z_a x Z_b with a b slightly above N (Black and Rogaway 2002),
    cycle-walking the few positions that land outside.
    """
    if num_data < 2:
        return position
    if num_data <= SMALL:
        return jax.random.permutation(key, num_data).astype(position.dtype)[position]
    a = math.isqrt(num_data - 1) + 1
    b = -(-num_data // a)
    keys = jax.random.bits(key, (ROUNDS,), dtype=jnp.uint32)

    def once(position: Array) -> Array:
        left, right = position // b, position % b
        for i in range(0, ROUNDS, 2):
            left = _add(left, right, keys[i], a)
            right = _add(right, left, keys[i + 1], b)
        return left * b + right

    def walk(position: Array) -> Array:
        return jnp.where(position >= num_data, once(position), position)

    start = once(position.astype(jnp.uint32))
    inside = jax.lax.while_loop(lambda p: jnp.any(p >= num_data), walk, start)
    return inside.astype(position.dtype)


def _add(value: Array, other: Array, key: Array, size: int) -> Array:
    """(value + hash(other, key)) mod size, without an integer division."""
    mixed = other + key
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)
    mixed = mixed ^ (mixed >> 16)
    moved = value + ((mixed >> 16) * jnp.uint32(size) >> 16)
    return jnp.where(moved >= size, moved - size, moved)
