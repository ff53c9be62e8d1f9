"""What a family's functions are given, compared with the family's own shapes and support.

A batch axis would be summed into one number without a word. Shapes are looked at while a program is
traced and cost nothing when it runs; values only where they are concrete.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from vijax import supports
from vijax.families.traits import Entropy, Kl
from vijax.shapes import is_concrete, same_shapes
from vijax.types import Family, PyTree, Scalar, Traits


class Likes(NamedTuple):
    """Shapes and dtypes of lam and of one draw, as trees of `jax.ShapeDtypeStruct`."""

    lam: PyTree
    z: PyTree


def likes(family: Family) -> Likes:
    """Nothing is computed."""

    def both() -> Likes:
        key = jax.random.key(0)
        lam, noise = family.init(key), family.noise(key, 1)
        z, _ = family.transport(lam, jax.tree.map(lambda leaf: leaf[0], noise))
        return Likes(lam, z)

    return jax.eval_shape(both)


def checked(family: Family) -> Family:
    """The family, refusing lam and z of other shapes than its own and, where the numbers are known,
    z outside its support.
    """
    like = functools.cache(functools.partial(likes, family))
    lam_name, z_name = f"lam of {family.name}", f"z of {family.name}"

    def check_lam(*lams: PyTree) -> None:
        for lam in lams:
            _same(lam, like().lam, lam_name)

    def log_prob(lam: PyTree, z: PyTree) -> Scalar:
        check_lam(lam)
        _same(z, like().z, z_name)
        if is_concrete(z):
            check_inside(family.support, z, z_name)
        return family.log_prob(lam, z)

    def transport(lam: PyTree, noise: PyTree) -> tuple[PyTree, Scalar]:
        check_lam(lam)
        z, log_q = family.transport(lam, noise)
        _same(z, like().z, f"a draw of {family.name} from the noise of one sample")
        return z, log_q

    def entropy(value: Any) -> Entropy:
        return Entropy(lambda lam: (check_lam(lam), value(lam))[1])

    def kl(value: Any) -> Kl:
        return Kl(lambda lam, lam2: (check_lam(lam, lam2), value(lam, lam2))[1])

    doors = {Entropy: entropy, Kl: kl}
    items = tuple(
        (kind, doors[kind](record.value) if kind in doors else record)
        for kind, record in family.traits.items
    )
    return family._replace(log_prob=log_prob, transport=transport, traits=Traits(items))


def check_inside(support: PyTree, z: PyTree, what: str) -> None:
    """Refuse concrete z outside a support: a class's number where a one-hot vector is meant, -1 and
    1 for bits. Relaxed bits and classes are inside.
    """
    for part, leaf in zip(supports.parts(support), jax.tree.leaves(z), strict=True):
        value = np.asarray(leaf)
        if part.name in OUTSIDE and np.any(OUTSIDE[part.name](value, part.bounds)):
            raise ValueError(
                f"{what} must lie in {supports.describe(part)}, {WORDS[part.name]}, but got "
                f"{np.array2string(value, threshold=8, precision=3)}: no density is known there."
            )


def _off_simplex(z: np.ndarray) -> np.ndarray:
    return (z < 0.0) | (abs(z.sum(axis=-1, keepdims=True) - 1.0) > 1e-2)


OUTSIDE = {
    "positive": lambda z, ends: z < 0.0,
    "interval": lambda z, ends: (z < ends[0]) | (z > ends[1]),
    "simplex": lambda z, ends: _off_simplex(z),
    "binary": lambda z, ends: (z < 0.0) | (z > 1.0),
    "one_hot": lambda z, ends: _off_simplex(z),
    "counts": lambda z, ends: (z < 0.0) | (z != np.round(z)),
}
WORDS = {
    "positive": "numbers above 0",
    "interval": "between its two ends",
    "simplex": "positive vectors of sum 1",
    "binary": "zeros and ones, not -1 and 1",
    "one_hot": "one-hot vectors over the last axis, as of jax.nn.one_hot(classes, C)",
    "counts": "whole numbers from 0",
}


def _same(tree: PyTree, like: PyTree, what: str) -> None:
    leaves, structure = jax.tree.flatten(tree)
    wanted, wanted_structure = jax.tree.flatten(like)
    if structure != wanted_structure or any(
        np.shape(leaf) != want.shape for leaf, want in zip(leaves, wanted, strict=True)
    ):
        same_shapes(tree, like, what)
