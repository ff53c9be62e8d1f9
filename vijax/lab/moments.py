"""Streaming moments of an estimator's gradient at frozen parameters, element by element and summed
over groups of elements.

A draw's key is `fold_in(key, its number)`: the draws, and so the moments, do not depend on how they
are cut into chunks or spread over devices.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from vijax import rows
from vijax.inference import Estimator
from vijax.shapes import check_batch
from vijax.types import Array, Batch, Key, Params, PyTree

CHUNK_NUMBERS = 2**18  # gradient elements held at once


class Moments(NamedTuple):
    """Of S independent draws g of the gradient. Groups: see `groups`; m is the mean of the draws.

    The spread's pair of numbers per draw is taken about the running mean of the draws so far. The
    noise of that mean enters the second number, whose spread (in the errors of norm and SNR alone)
    is somewhat too large where chunks are small and S is too; nothing else is approximate.

    Attributes:
      mean: [P] elements of params, leaf after leaf.
      variance: [P] unbiased.
      third: [P] central moment.
      fourth: [P] central moment.
      spread: [M, 2, 2] covariance of (|g - m|^2, m.(g - m)) per group.
      squares: [S, M] |g - m|^2 per draw and group; [0, M] unless asked for.
      num_draws: S.
    """

    mean: Array
    variance: Array
    third: Array
    fourth: Array
    spread: Array
    squares: Array
    num_draws: int


class _Sums(NamedTuple):
    """What a chunk of draws is added to.

    Attributes:
      count: [] draws so far.
      mean: [P] of all elements, one after the other.
      powers: [P] sums of (g - mean)^2, ^3, ^4.
      pair: [M, 2] mean of the spread's pair.
      products: [M, 2, 2] sums of products of its deviations.
    """

    count: Array
    mean: Array
    powers: tuple[Array, Array, Array]
    pair: Array
    products: Array


def groups(params: Params) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the groups [M] and their leaves, bool [M, L]: theta, phi, control, then each leaf of
    a block of several, such as phi/z/loc, in q's own parameters (`vijax.in_lam`) too.
    """
    phi = params.phi.lam if isinstance(params.phi, rows.Lam) else rows.stored(params.phi)
    named = params._replace(phi=phi)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(named)]
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/").removeprefix(".") for path in paths
    ]
    blocks = [name.split("/")[0] for name in names]
    wholes = [block for block in Params._fields if block in blocks]
    parts = [name for name, block in zip(names, blocks, strict=True) if blocks.count(block) > 1]
    members = [[block == whole for block in blocks] for whole in wholes] + [
        [name == part for name in names] for part in parts
    ]
    return (*wholes, *parts), np.asarray(members, bool).reshape(len(members), len(names))


def measure(
    key: Key,
    estimator: Estimator,
    params: Params,
    state: PyTree,
    batch: Batch,
    *,
    num_draws: int,
    chunk_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    keep_squares: bool = False,
    quick_compile: bool = False,
) -> Moments:
    """The moments of `num_draws` gradients. Memory: `chunk_size` gradients and a few copies of
    params, whatever num_draws.

    Merges chunks by the pairwise formulas of Chan et al. 1983 and Pebay 2008, eq. 2.1 and 3.1.

    Args:
      chunk_size: draws taken at once; None: 4 for a million parameters or more, up to 500 for few.
      sharding: how a chunk's draws [chunk_size] lie over devices; None: all on one.
      keep_squares: return a number per draw and group, for pairing draws of several estimators.
      quick_compile: compile in about half the time a program that is somewhat slower.
    """
    check_batch(batch)
    if num_draws < 2:
        raise ValueError(f"num_draws={num_draws}, but a variance needs at least 2.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1, or None.")
    if chunk_size is None:
        num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        chunk_size = min(max(4, CHUNK_NUMBERS // max(1, num_params)), 500)
    num_chunks = -(-num_draws // chunk_size)
    even = -(-num_draws // num_chunks)
    if sharding is not None:
        even = -(-even // sharding.num_devices) * sharding.num_devices
    shape = (-(-num_draws // even), even)
    run = _measure_quick if quick_compile else _measure
    result = run(
        key,
        params,
        state,
        batch,
        num_draws,
        estimator=estimator,
        shape=shape,
        sharding=sharding,
        keep=keep_squares,
    )
    squares = result.squares[:num_draws] if keep_squares else result.squares
    return result._replace(squares=squares, num_draws=num_draws)


def _run(
    key: Key,
    params: Params,
    state: PyTree,
    batch: Batch,
    num_draws: int,
    *,
    estimator: Estimator,
    shape: tuple[int, int],
    sharding: jax.sharding.Sharding | None,
    keep: bool,
) -> Moments:
    """`measure` of [chunks, draws in each] = shape; its `num_draws` is not filled in."""
    num_chunks, size = shape
    flat = ravel_pytree(params)[0]
    zeros = jnp.zeros(flat.shape, jnp.promote_types(flat.dtype, jnp.float32))
    members = jnp.asarray(groups(params)[1], zeros.dtype)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]

    def chunk(sums: _Sums, start: Array) -> tuple[_Sums, Array]:
        number = start + jnp.arange(size)
        if sharding is not None:
            number = jax.lax.with_sharding_constraint(number, sharding)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, number)
        draws = jax.vmap(
            lambda k: ravel_pytree(estimator.estimate(k, params, state, batch)[0].grads)[0]
        )(keys)
        draws = draws.astype(zeros.dtype)
        real = number < num_draws  # the last chunk may be padded
        sums = _add(sums, draws, real)
        pair = jnp.einsum("ml,slp->smp", members, _pairs(draws, sums.mean, sizes))
        # The mean holds these draws too, which makes their distance from it smaller by this much.
        pair = pair.at[..., 0].multiply(sums.count / jnp.maximum(sums.count - 1.0, 1.0))
        return _add_pairs(sums, pair, real), pair[..., 0] if keep else pair[:0, :, 0]

    num_groups = members.shape[0]
    blank = (jnp.zeros(shape, zeros.dtype) for shape in ((), (num_groups, 2), (num_groups, 2, 2)))
    count, pair, products = blank
    start = _Sums(count, zeros, (zeros, zeros, zeros), pair, products)
    sums, squares = jax.lax.scan(chunk, start, size * jnp.arange(num_chunks))
    n, (second, third, fourth) = sums.count, sums.powers
    return Moments(
        mean=sums.mean,
        variance=second / (n - 1),
        third=third / n,
        fourth=fourth / n,
        spread=sums.products / (n - 1),
        squares=squares.reshape(-1, num_groups),
        num_draws=0,
    )


_STATIC = ("estimator", "shape", "sharding", "keep")
_measure = jax.jit(_run, static_argnames=_STATIC)
_measure_quick = jax.jit(
    _run, static_argnames=_STATIC, compiler_options={"xla_backend_optimization_level": 1}
)


def _add(sums: _Sums, draws: Array, real: Array) -> _Sums:
    """The sums with those of a chunk, draws [size, P], added; of the draws, those that are
    `real`.
    """
    a, b = sums.count, jnp.sum(real, dtype=sums.count.dtype)
    n = a + b
    mean = jnp.sum(jnp.where(real[:, None], draws, 0), axis=0) / b
    away = jnp.where(real[:, None], draws - mean[None], 0)
    square = away * away
    s2, s3, s4 = sums.powers
    t2, t3, t4 = (
        jnp.sum(square, axis=0),
        jnp.sum(square * away, axis=0),
        jnp.sum(square * square, axis=0),
    )
    d = mean - sums.mean
    fourth = (
        d**4 * (a * b * (a * a - a * b + b * b) / n**3)
        + 6 * d**2 * (a * a * t2 + b * b * s2) / n**2
    )
    powers = (
        s2 + t2 + d**2 * (a * b / n),
        s3 + t3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * t2 - b * s2) / n,
        s4 + t4 + fourth + 4 * d * (a * t3 - b * s3) / n,
    )
    return sums._replace(count=n, mean=sums.mean + d * (b / n), powers=powers)


def _pairs(draws: Array, mean: Array, sizes: list[int]) -> Array:
    """[draws, L, 2]: (|g - m|^2, m.(g - m)) per leaf."""
    away = draws - mean[None]
    ends = itertools.pairwise(np.cumsum([0, *sizes]))

    def leaf(part: Array, mean: Array) -> Array:
        # Products with a vector, because a sum over the last axis is not vectorised on CPU.
        return jnp.stack([(part * part) @ jnp.ones_like(mean), part @ mean], axis=-1)

    return jnp.stack([leaf(away[:, a:b], mean[a:b]) for a, b in ends], axis=1)


def _add_pairs(sums: _Sums, pair: Array, real: Array) -> _Sums:
    """The spread with a chunk's added; `sums.count` holds the chunk already."""
    b = jnp.sum(real, dtype=sums.count.dtype)
    a = sums.count - b
    mean = jnp.sum(jnp.where(real[:, None, None], pair, 0), axis=0) / b
    away = jnp.where(real[:, None, None], pair - mean[None], 0)
    shift = mean - sums.pair
    between = shift[:, :, None] * shift[:, None, :] * (a * b / sums.count)
    products = sums.products + jnp.einsum("smp,smq->mpq", away, away) + between
    return sums._replace(pair=sums.pair + shift * (b / sums.count), products=products)
