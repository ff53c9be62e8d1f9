"""Checks that the whole battery shares: unbiasedness in standard errors, partition, agreement. Each
raises AssertionError.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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

    with jax.enable_x64(True), contextlib.ExitStack() as undo:
        for name in real:
            setattr(jax.random, name, coarse(name))
            undo.callback(setattr, jax.random, name, real[name])
        yield


# Half the time of the compiler's own level 0 or less, for programs that are tiny and run once.
FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def compiled(function, *given):
    """`function(*given)` through a compilation with cheap passes only: these programs are tiny and
    run once.
    """
    return jax.device_get(jax.jit(function).lower(*given).compile(FAST_COMPILE)(*given))


def gradient_draws(key, estimator, params, state, batch, *, num_draws):
    """S independent `Estimate`s (without aux) of one batch, then one more: the first key, the rows
    in reverse order.

    One instance of the estimator is traced and compiled, whatever is asked of it.
    """

    def one(key, reverse):
        order = jnp.where(
            reverse, jnp.arange(batch.index.shape[0])[::-1], jnp.arange(batch.index.shape[0])
        )
        result, _ = estimator.estimate(
            key, params, state, jax.tree.map(lambda leaf: leaf[order], batch)
        )
        return result._replace(aux=())

    keys = jax.random.split(key, num_draws)
    keys, reverse = jnp.concatenate([keys, keys[:1]]), np.arange(num_draws + 1) == num_draws
    seen = compiled(jax.vmap(one), keys, jnp.asarray(reverse))
    return jax.tree.map(lambda leaf: leaf[:-1], seen), jax.tree.map(lambda leaf: leaf[-1], seen)


class Agreement(NamedTuple):
    """One estimator in single calls; `Estimate`s without aux.

    Attributes:
      whole: the full batch
      again: the same call again
      pair: a minibatch of two, same key
      singles: each datum as a batch of its own, same key
    """

    whole: Any
    again: Any
    pair: Any
    singles: list[Any]


def single_calls(key, estimator, params, state, pair, full):
    """Three compilations: B = N, 2 and 1."""

    def one(key, params, state, batch):
        return estimator.estimate(key, params, state, batch)[0]._replace(aux=())

    def call(batches):
        program = jax.jit(one).lower(key, params, state, batches[0]).compile(FAST_COMPILE)
        return [program(key, params, state, batch) for batch in batches]

    rows = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], full) for i in range(full.index.shape[0])
    ]
    whole, again = call([full, full])
    return Agreement(whole, again, call([pair])[0], call(rows))


def assert_unbiased(draws, exact, *, max_z=5.0):
    """|mean of the draws - exact| <= max_z standard errors, for every element of every leaf.

    A leaf without spread (an exact rule) must agree to rounding instead.

    Args:
      draws: leaves [S, ...].
      exact: the same tree, leaves [...].
    """
    table = []
    for (path, leaf), answer in zip(
        jax.tree_util.tree_leaves_with_path(draws), jax.tree.leaves(exact), strict=True
    ):
        leaf, answer = np.asarray(leaf, np.float64), np.asarray(answer, np.float64)
        assert leaf.shape[1:] == answer.shape, (
            f"{jax.tree_util.keystr(path)}: {leaf.shape[1:]} against {answer.shape}"
        )
        assert np.all(np.isfinite(leaf)), f"{jax.tree_util.keystr(path)}: a draw is not finite"
        error = np.abs(leaf.mean(axis=0) - answer)
        standard_error = leaf.std(axis=0, ddof=1) / len(leaf) ** 0.5
        rounding = 1e-9 * (1.0 + np.abs(answer))
        z = error / (standard_error + rounding)
        table.append((jax.tree_util.keystr(path), float(z.max(initial=0.0))))
    worst = max(table, key=lambda row: row[1])
    assert worst[1] < max_z, (
        f"biased: {', '.join(f'{name} z = {z:.1f}' for name, z in table if z >= max_z)}"
    )
    return worst


def assert_close(left, right, *, tolerance):
    """Equal up to `tolerance` times the largest element of either tree (at least 1)."""
    left_leaves, right_leaves = jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right)
    arrays = [
        (path, np.asarray(a, np.float64), np.asarray(b, np.float64))
        for (path, a), b in zip(left_leaves, right_leaves, strict=True)
    ]
    scale = max(1.0, *(float(np.abs(a).max(initial=0.0)) for _, a, _ in arrays))
    for path, a, b in arrays:
        assert a.shape == b.shape, f"{jax.tree_util.keystr(path)}: {a.shape} against {b.shape}"
        assert np.all(np.isfinite(a)), f"{jax.tree_util.keystr(path)} is not finite"
        worst = float(np.abs(a - b).max(initial=0.0))
        assert worst <= tolerance * scale, (
            f"{jax.tree_util.keystr(path)} differs by {worst:.3g}, scale {scale:.3g}"
        )


def assert_same_bits(left, right):
    """Bitwise equal."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_partition(whole, parts, sizes, *, tolerance=1e-12):
    """The estimates of an epoch's minibatches, weighted by B / N, add up to that of the full batch
    with the same key.

    Args:
      whole: the full batch's estimate.
      parts: one estimate per batch of a partition.
      sizes: their B.
    """
    weights = [size / sum(sizes) for size in sizes]
    total = jax.tree.map(
        lambda *leaves: sum(w * g for w, g in zip(weights, leaves, strict=True)), *parts
    )
    assert_close(total, whole, tolerance=tolerance)
