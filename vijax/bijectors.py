"""Smooth one-to-one maps from R^D onto supports: how a family on R^D reaches constrained latents.

The maps are those of numpyro and Stan, in formulas that keep the digits of float32: at the ends of
an interval, on the simplex and on correlations the usual ones do not.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple, NoReturn

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vijax.supports import describe
from vijax.types import Array, PyTree, Scalar, Support


class Bijector(NamedTuple):
    """A smooth one-to-one map from R^D onto a support. Build one with `onto`.

    Attributes:
      name: says onto what, with sizes: equal names mean equal maps.
      forward: u [D] -> x, a tree like `support`.
      inverse: x -> u [D].
      log_det: u [D] -> [] log |det dx/du|, x standing for its free coordinates where it has more
        numbers than D.
      size: D.
      support: tree of `Support` like x.
    """

    name: str
    forward: Callable[[Array], PyTree]
    inverse: Callable[[PyTree], Array]
    log_det: Callable[[Array], Scalar]
    size: int
    support: PyTree


def onto(support: PyTree) -> Bijector:
    """The map from R^D onto a support, or onto a tree of supports, between which u is cut in the
    order of `jax.tree.leaves`.

    `onto({"mu": supports.real(8), "tau": supports.positive()})` has D = 9. Dtypes are those of u.
    x is always strictly inside the support: where u asks for more than the floats of x can tell
    from the edge (in float32, beyond 15 towards an end of an interval other than 0, beyond 65
    towards 0), x stops short of it, its derivative is 0 and `inverse` finds that x's u.

    The log-determinant, and so every density made with it, is that of x itself; of a simplex [K],
    that of its first K - 1 entries (stick-breaking); of a correlation_cholesky, that of the entries
    below the diagonal (stick-breaking of the rows' squares; Lewandowski, Kurowicka and Joe 2009).
    On these two `inverse` is extended off the set in some way, reading all entries: derivatives in
    x mean something along the set only.

    Args:
      support: from `vijax.supports`: real (the identity), positive (exp), interval (sigmoid),
        ordered (exp of the steps), simplex, correlation_cholesky, or a tree of these.

    Raises:
      ValueError: if a part of it cannot be reached from R^D.
    """
    leaves, treedef = jax.tree.flatten(support, is_leaf=lambda part: isinstance(part, Support))
    if not leaves or not all(isinstance(part, Support) for part in leaves):
        raise ValueError(
            f"onto({support!r}): that is no tree of supports. Give one from vijax.supports, such "
            'as supports.positive(3), or a dict of them, {"mu": supports.real(8)}.'
        )
    maps = [MAPS.get(part.name, _refuse)(part) for part in leaves]
    ends = list(accumulate(m.size for m in maps))

    def pieces(u: Array) -> list[Array]:
        chex.assert_shape(u, (ends[-1],))
        return jnp.split(u, ends[:-1])

    def forward(u: Array) -> PyTree:
        return treedef.unflatten(
            [m.forward(piece) for m, piece in zip(maps, pieces(u), strict=True)]
        )

    def inverse(x: PyTree) -> Array:
        values = treedef.flatten_up_to(x)
        for leaf, value in zip(leaves, values, strict=True):
            chex.assert_shape(value, leaf.shape)
        return jnp.concatenate([m.inverse(value) for m, value in zip(maps, values, strict=True)])

    def log_det(u: Array) -> Scalar:
        terms = [m.log_det(piece) for m, piece in zip(maps, pieces(u), strict=True)]
        return jnp.sum(jnp.stack(terms))

    return Bijector(describe(support), forward, inverse, log_det, ends[-1], support)


class _Map(NamedTuple):
    """Onto one support, u [size] already cut out."""

    size: int
    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    log_det: Callable[[Array], Scalar]


def _real(support: Support) -> _Map:
    return _Map(
        math.prod(support.shape),
        lambda u: u.reshape(support.shape),
        jnp.ravel,
        lambda u: jnp.zeros((), u.dtype),
    )


def _positive(support: Support) -> _Map:
    return _Map(
        math.prod(support.shape),
        lambda u: jnp.exp(jnp.clip(u, -_reach(u), _reach(u))).reshape(support.shape),
        lambda x: jnp.ravel(jnp.log(x)),
        jnp.sum,
    )


def _interval(support: Support) -> _Map:
    low, high = support.bounds
    if not (math.isfinite(low) and math.isfinite(high)):
        advice = "Write supports.positive and shift it inside the log-joint."
        raise ValueError(f"onto({describe(support)}): the ends must be finite. {advice}")

    def forward(u: Array) -> Array:
        eps, tiny = float(jnp.finfo(u.dtype).eps), float(jnp.finfo(u.dtype).tiny)
        above, below = (max(2.0 * eps * abs(end), tiny) for end in support.bounds)
        inside = low + (high - low) * jax.nn.sigmoid(u)
        return jnp.clip(inside, low + above, high - below).reshape(support.shape)

    def log_det(u: Array) -> Scalar:
        slopes = jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u)
        return jnp.sum(slopes + math.log(high - low))

    return _Map(
        math.prod(support.shape),
        forward,
        # Both differences are exact near their ends; a quotient by the width may round to 0 or 1.
        lambda x: jnp.ravel(jnp.log(x - low) - jnp.log(high - x)),
        log_det,
    )


def _ordered(support: Support) -> _Map:
    (size,) = support.shape

    def forward(u: Array) -> Array:
        steps = jnp.clip(u[1:], -_reach(u), _reach(u) - math.log(size))
        # A step below the rounding errors of the sums would leave two entries equal.
        largest = jax.lax.stop_gradient(jnp.abs(u[0]) + jnp.cumsum(jnp.exp(steps)))
        least = 2.0 * size.bit_length() * float(jnp.finfo(u.dtype).eps) * largest
        steps = jnp.maximum(steps, jnp.log(least))
        return jnp.cumsum(jnp.concatenate([u[:1], jnp.exp(steps)]))

    return _Map(
        size,
        forward,
        lambda x: jnp.concatenate([x[:1], jnp.log(jnp.diff(x))]),
        lambda u: jnp.sum(u[1:]),
    )


def _simplex(support: Support) -> _Map:
    # In logarithms: in float32, 1 - sigmoid(u) and 1 - cumsum(x) lose their digits from u = 10 on.
    if support.shape[:-1]:
        raise ValueError(f"onto({describe(support)}): one at a time, in a dict of simplex(C).")
    size = support.shape[0] - 1
    after = np.arange(size, 0, -1)  # entries after each

    def breaks(u: Array) -> Array:  # logits of the broken-off fractions
        return u - jnp.log(jnp.asarray(after, u.dtype))

    def forward(u: Array) -> Array:
        fraction, none = breaks(u), jnp.zeros((1,), u.dtype)
        broken = jnp.concatenate([jax.nn.log_sigmoid(fraction), none])
        left = jnp.concatenate([none, jnp.cumsum(jax.nn.log_sigmoid(-fraction))])
        return jnp.exp(jnp.maximum(broken + left, -_reach(u)))

    def inverse(x: Array) -> Array:
        left = jnp.cumsum(x[::-1])[::-1][1:]
        return jnp.log(x[:-1]) - jnp.log(left) + jnp.log(jnp.asarray(after, x.dtype))

    def log_det(u: Array) -> Scalar:
        fraction, weight = breaks(u), jnp.asarray(after, u.dtype)
        return jnp.sum(jax.nn.log_sigmoid(fraction) + weight * jax.nn.log_sigmoid(-fraction))

    return _Map(size, forward, inverse, log_det)


def _correlation_cholesky(support: Support) -> _Map:
    # In logarithms: in float32, 1 - tanh(u)^2 and 1 - cumsum(x^2) lose their digits from u = 6 on.
    dim = support.shape[0]
    rows, columns = np.tril_indices(dim, -1)

    def log_sech(u: Array) -> Array:
        return math.log(2.0) - u - jax.nn.softplus(-2.0 * u)

    def forward(u: Array) -> Array:
        zeros = jnp.zeros((dim, dim), u.dtype)
        # Log root of what the columns before leave; `inverse` has its square in a derivative.
        left = jnp.cumsum(zeros.at[rows, columns + 1].set(log_sech(u)), axis=1)
        root = jnp.exp(jnp.maximum(left, -0.5 * _reach(u)))
        return (zeros.at[rows, columns].set(jnp.tanh(u)) + jnp.eye(dim, dtype=u.dtype)) * root

    def inverse(x: Array) -> Array:
        squares = jnp.square(jnp.tril(x))
        left = jnp.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
        return jnp.arcsinh(x[rows, columns] / jnp.sqrt(left[rows, columns + 1]))

    def log_det(u: Array) -> Scalar:
        return jnp.sum(jnp.asarray(rows - columns + 1, u.dtype) * log_sech(u))

    return _Map(rows.size, forward, inverse, log_det)


MAPS: dict[str, Callable[[Support], _Map]] = {
    "real": _real,
    "positive": _positive,
    "interval": _interval,
    "ordered": _ordered,
    "simplex": _simplex,
    "correlation_cholesky": _correlation_cholesky,
}

APART = (
    "its values are separate points, which no continuous map from R^D reaches. Give it a family of "
    "its own in families.product, such as families."
)
UNREACHABLE = {
    "binary": APART + "bernoulli",
    "one_hot": APART + "categorical",
    "counts": APART + "poisson",
    "circle": "its two ends are one point, where a one-to-one map from R would tear it. Write "
    "families.von_mises for it or, where the cut does no harm, supports.interval(-pi, pi)",
    "moving": "it depends on the family's parameters, so there is no one map onto it. Give a fixed "
    "support, and scale or shift inside the log-joint",
}


def _refuse(support: Support) -> NoReturn:
    unknown = "no map onto it is known. Build a bijectors.Bijector of your own for it"
    raise ValueError(f"onto({describe(support)}): {UNREACHABLE.get(support.name, unknown)}.")


def _reach(u: Array) -> float:
    """Where exp stops, 65 in float32: 1 / x times a slope of 1e10 is a float."""
    return float(math.floor(-0.75 * math.log(jnp.finfo(u.dtype).tiny)))
