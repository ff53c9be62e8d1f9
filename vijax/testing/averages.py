"""What every check is made of: averages with their standard errors, compared; arrays that must be
equal; small programs compiled quickly. Each comparison raises AssertionError.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.types import Array, PyTree

# Half the time of the compiler's own level 0 or less, for programs that are tiny and run once.
FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class Average(NamedTuple):
    """A mean and its standard error, trees of one structure; error 0 where the mean is exact."""

    mean: PyTree
    error: PyTree


def average(draws: PyTree) -> Average:
    """Of independent draws, leaves [S, ...]; traceable."""

    def error(leaf: Array) -> Array:
        return jnp.std(leaf, axis=0, ddof=1) / leaf.shape[0] ** 0.5

    return Average(jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), draws), _map(error, draws))


def exactly(tree: PyTree) -> Average:
    """A figure without error."""
    return Average(tree, _map(jnp.zeros_like, tree))


def assert_agree(
    ours: Average,
    theirs: Average,
    *,
    what: str = "biased",
    meaning: str = "",
    max_z: float = 5.0,
    rounding: float = 1e-9,
) -> tuple[str, float]:
    """|ours - theirs| <= max_z standard errors of both together, for every element of every leaf.

    Args:
      what: names the property in the message.
      meaning: completes the message: what such a difference usually comes from.
      rounding: relative to 1 + |theirs|, part of the error: all of it where nothing is random.

    Returns:
      (name of the leaf, z) of the largest difference in standard errors.
    """
    means = jax.tree_util.tree_leaves_with_path(ours.mean), jax.tree.leaves(theirs.mean)
    errors = jax.tree.leaves(ours.error), jax.tree.leaves(theirs.error)
    table = [("", 0.0, 0.0)]
    for (path, mean), answer, *error in zip(*means, *errors, strict=True):
        name = jax.tree_util.keystr(path)
        mean, answer = np.asarray(mean, np.float64), np.asarray(answer, np.float64)
        assert mean.shape == answer.shape, f"{what}{name}: {mean.shape} against {answer.shape}"
        assert np.all(np.isfinite(mean)), f"{what}{name}: a draw or a figure is not finite"
        unit = np.hypot(*(np.asarray(e, np.float64) for e in error))
        difference = np.abs(mean - answer)
        z = difference / (unit + rounding * (1.0 + np.abs(answer)))
        worst = np.unravel_index(np.argmax(z), z.shape) if z.size else None
        table += [] if worst is None else [(name, float(z[worst]), float(difference[worst]))]
    wrong = [
        f"{name or 'it is'} off by {d:.3g}, z = {z:.1f}" for name, z, d in table if not z < max_z
    ]
    assert not wrong, f"{what}: {'; '.join(wrong)}.{' ' * bool(meaning)}{meaning}"
    return max(((name, z) for name, z, _ in table), key=lambda row: row[1])


def assert_unbiased(
    draws: PyTree, exact: PyTree, *, max_z: float = 5.0, what: str = "biased", meaning: str = ""
) -> tuple[str, float]:
    """|mean of the draws - exact| <= max_z standard errors, for every element of every leaf; a leaf
    without spread (an exact rule) must agree to rounding instead.

    Args:
      draws: leaves [S, ...].
      exact: the same tree, leaves [...].
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(draws):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), f"{what}{name}: a draw is not finite"
    seen = _map(lambda leaf: np.asarray(leaf, np.float64), draws)
    errors = _map(lambda leaf: leaf.std(axis=0, ddof=1) / len(leaf) ** 0.5, seen)
    ours = Average(_map(lambda leaf: leaf.mean(axis=0), seen), errors)
    theirs = Average(exact, _map(lambda leaf: np.zeros(np.shape(leaf)), exact))
    return assert_agree(ours, theirs, what=what, meaning=meaning, max_z=max_z)


def assert_close(left: PyTree, right: PyTree, *, tolerance: float, what: str = "") -> None:
    """Equal up to `tolerance` times the largest element of either tree (at least 1)."""
    left_leaves, right_leaves = jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right)
    arrays = [
        (path, np.asarray(a, np.float64), np.asarray(b, np.float64))
        for (path, a), b in zip(left_leaves, right_leaves, strict=True)
    ]
    scale = max(1.0, *(float(np.abs(a).max(initial=0.0)) for _, a, _ in arrays))
    for path, a, b in arrays:
        name = f"{what}{': ' * bool(what)}{jax.tree_util.keystr(path)}"
        assert a.shape == b.shape, f"{name}: {a.shape} against {b.shape}"
        assert np.all(np.isfinite(a)), f"{name} is not finite"
        worst = float(np.abs(a - b).max(initial=0.0))
        assert worst <= tolerance * scale, f"{name} differs by {worst:.3g}, scale {scale:.3g}"


def assert_same_bits(left: PyTree, right: PyTree) -> None:
    """Bitwise equal."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_partition(
    whole: PyTree, parts: Sequence[PyTree], sizes: Sequence[int], *, tolerance: float = 1e-12
) -> None:
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


def compiled(function: Callable[..., Any], *given: Any) -> Any:
    """`function(*given)` on the host, through a compilation with cheap passes only."""
    return jax.device_get(quickly(function, *given)(*given))


def quickly(function: Callable[..., Any], *given: Any) -> Callable[..., Any]:
    """The program of `function` for arguments of these shapes, compiled with cheap passes only."""
    lowered = jax.jit(function).lower(*given)
    return lowered.compile(FAST_COMPILE if jax.default_backend() == "cpu" else None)


def in_float(bits: int) -> AbstractContextManager[Any]:
    """A context in which new arrays are float64, or float32, by the name that the installed JAX
    has for it.
    """
    place = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
    return place.enable_x64(bits == 64)


def _map(function: Callable[[Any], Any], tree: PyTree) -> PyTree:
    return jax.tree.map(function, tree)
