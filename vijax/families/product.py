"""Families made of families: independent named blocks, and chains whose later part depends on the
earlier.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
from flax.core import FrozenDict

from vijax.families.base import family
from vijax.families.traits import (
    Blocks,
    Density,
    IndependentBlocks,
    Inverse,
    Reparameterized,
    UniformNoise,
    total,
)
from vijax.types import Array, Family, Key, PyTree, Scalar

T = TypeVar("T")


def product(**blocks: Family) -> Family:
    """Independent named blocks: z and lam are dicts with one entry per block.

    `product(c=categorical(3), z=diag_normal(2))`. Rules may then differ per block:
    `rules={"c": ..., "z": ...}`. Of the other traits it has those that every block has.

    Raises:
      ValueError: if there are no blocks.
    """
    if not blocks:
        raise ValueError(
            "product() has no blocks: name at least one, as in product(z=diag_normal(2))."
        )

    def init(key: Key) -> PyTree:
        keys = dict(zip(blocks, _split(key, len(blocks)), strict=True))
        return {name: block.init(keys[name]) for name, block in blocks.items()}

    def noise(key: Key, num_samples: int) -> PyTree:
        keys = dict(zip(blocks, _split(key, len(blocks)), strict=True))
        return {name: block.noise(keys[name], num_samples) for name, block in blocks.items()}

    def transport(lam: PyTree, noise: PyTree) -> tuple[PyTree, Scalar]:
        moved = {name: block.transport(lam[name], noise[name]) for name, block in blocks.items()}
        log_q = total(log_q for _, log_q in moved.values())
        return {name: z for name, (z, _) in moved.items()}, log_q

    def log_prob(lam: PyTree, z: PyTree) -> Scalar:
        return total(block.log_prob(lam[name], z[name]) for name, block in blocks.items())

    return family(
        _name("product", blocks),
        init=init,
        support={name: block.support for name, block in blocks.items()},
        log_prob=log_prob if every(Density, blocks) is not None else None,
        noise=noise,
        transport=transport,
        traits=[
            Blocks(FrozenDict(blocks), lambda name, lam, before: lam[name], ordered=False),
            IndependentBlocks(),
            *joint((kind for kind, _ in next(iter(blocks.values())).traits.items), blocks),
        ],
    )


def chain(
    first: tuple[str, Family],
    then: tuple[str, Family],
    locate: Callable[[PyTree, PyTree], PyTree],
    init: Callable[[Key], PyTree],
) -> Family:
    """A structured q(z1) q(z2 | z1): the second block's parameters are a function of the first
    block's value.

    lam: a dict with the first block's lam under its name and the parameters of `locate` under the
    second's. One rule for the whole chain that stops q's parameters stops exactly those, never the
    path through z1. Rules per block nest: the second is differentiated inside the first, given z1.

    Args:
      first: (name, family).
      then: (name, family).
      locate: (lam[second name], z1) -> lam of the second family.
      init: key -> initial lam[second name].
    """
    (name1, family1), (name2, family2) = first, then
    blocks = {name1: family1, name2: family2}

    def init_both(key: Key) -> PyTree:
        key1, key2 = jax.random.split(key)
        return {name1: family1.init(key1), name2: init(key2)}

    def noise(key: Key, num_samples: int) -> PyTree:
        key1, key2 = jax.random.split(key)
        return {name1: family1.noise(key1, num_samples), name2: family2.noise(key2, num_samples)}

    def transport(lam: PyTree, noise: PyTree) -> tuple[PyTree, Scalar]:
        z1, log_q1 = family1.transport(lam[name1], noise[name1])
        z2, log_q2 = family2.transport(locate(lam[name2], z1), noise[name2])
        return {name1: z1, name2: z2}, log_q1 + log_q2

    def log_prob(lam: PyTree, z: PyTree) -> Scalar:
        log_q1 = family1.log_prob(lam[name1], z[name1])
        return log_q1 + family2.log_prob(locate(lam[name2], z[name1]), z[name2])

    def block_lam(name: str, lam: PyTree, before: PyTree) -> PyTree:
        return lam[name1] if name == name1 else locate(lam[name2], before[name1])

    def inverse(lam: PyTree, z: PyTree) -> PyTree:
        return {
            name: found.noise(block_lam(name, lam, z), z[name]) for name, found in inverses.items()
        }

    inverses = every(Inverse, blocks) or {}
    return family(
        _name("chain", blocks),
        init=init_both,
        support={name: block.support for name, block in blocks.items()},
        log_prob=log_prob if every(Density, blocks) is not None else None,
        noise=noise,
        transport=transport,
        traits=[
            Blocks(FrozenDict(blocks), block_lam, ordered=True),
            Inverse(inverse) if inverses else None,
            # The blocks' noises are independent, whatever links their lam.
            *joint((UniformNoise, Reparameterized), blocks),
        ],
    )


def every(kind: type[T], blocks: Mapping[str, Family]) -> dict[str, T] | None:
    """That trait of every block, or None if one lacks it."""
    found = {name: block.traits.get(kind) for name, block in blocks.items()}
    there = {name: record for name, record in found.items() if record is not None}
    return there if len(there) == len(found) else None


def joint(kinds: Iterable[type], blocks: Mapping[str, Family]) -> list[Any]:
    """What these traits are of independent blocks together, where every block has them."""
    shared = {kind: every(kind, blocks) for kind in kinds if hasattr(kind, "joint")}
    return [kind.joint(parts) for kind, parts in shared.items() if parts is not None]


def _name(kind: str, blocks: Mapping[str, Family]) -> str:
    return f"{kind}({', '.join(f'{name}={block.name}' for name, block in blocks.items())})"


def _split(key: Key, num: int) -> list[Array]:
    return [key] if num == 1 else list(jax.random.split(key, num))
