"""Families made of families: independent named blocks, and chains whose later part depends on the
earlier.
"""

import itertools
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from vijax.families.base import family
from vijax.types import Array, Family, Key, PyTree, Scalar


def product(**blocks: Family) -> Family:
    """Independent named blocks: z and lam are dicts with one entry per block.

    `product(c=categorical(3), z=diag_normal(2))`. Rules may then differ per block: `rules={"c":
    ..., "z": ...}`. Entropy, KL and support exist if every block has them.
    """
    if not blocks:
        raise ValueError(
            "product() has no blocks: name at least one, as in product(z=diag_normal(2))."
        )

    def init(key: Key) -> PyTree:
        return {
            name: block.init(k)
            for (name, block), k in zip(blocks.items(), _split(key, len(blocks)), strict=True)
        }

    def noise(key: Key, num_samples: int) -> PyTree:
        keys = _split(key, len(blocks))
        return {
            name: block.noise(k, num_samples)
            for (name, block), k in zip(blocks.items(), keys, strict=True)
        }

    def transport(lam: PyTree, noise: PyTree) -> tuple[PyTree, Scalar]:
        moved = {name: block.transport(lam[name], noise[name]) for name, block in blocks.items()}
        return {name: z for name, (z, _) in moved.items()}, sum_scalars(
            log_q for _, log_q in moved.values()
        )

    def log_prob(lam: PyTree, z: PyTree) -> Scalar:
        return sum_scalars(block.log_prob(lam[name], z[name]) for name, block in blocks.items())

    def entropy(lam: PyTree) -> Scalar:
        return sum_scalars(
            cast(Callable, block.entropy)(lam[name]) for name, block in blocks.items()
        )

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        return sum_scalars(
            cast(Callable, block.kl)(lam[name], lam2[name]) for name, block in blocks.items()
        )

    def support() -> PyTree:
        grids = jnp.meshgrid(
            *(jnp.arange(block.support_size) for block in blocks.values()), indexing="ij"
        )
        return {
            name: jax.tree.map(
                lambda leaf, grid=grid: leaf[grid.ravel()], cast(Callable, block.support)()
            )
            for (name, block), grid in zip(blocks.items(), grids, strict=True)
        }

    def from_uniform(uniforms: Array) -> PyTree:
        ends = list(
            itertools.accumulate(cast(int, block.num_uniforms) for block in blocks.values())
        )
        parts = zip(blocks.items(), jnp.split(uniforms, ends[:-1]), strict=True)
        return {name: cast(Callable, block.from_uniform)(part) for (name, block), part in parts}

    uniforms = [block.num_uniforms for block in blocks.values()]
    has_uniforms = all(count is not None for count in uniforms)
    sizes = [block.support_size for block in blocks.values()]
    finite = all(size is not None for size in sizes)
    return family(
        f"product({', '.join(f'{name}={block.name}' for name, block in blocks.items())})",
        init=init,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        reparameterized={name: block.reparameterized for name, block in blocks.items()},
        fixed_support=all(block.fixed_support for block in blocks.values()),
        entropy=entropy if all(block.entropy is not None for block in blocks.values()) else None,
        kl=kl if all(block.kl is not None for block in blocks.values()) else None,
        support=support if finite else None,
        support_size=math.prod(cast(list[int], sizes)) if finite else None,
        blocks=blocks,
        block_lam=lambda name, lam, before: lam[name],
        num_uniforms=sum(cast(list[int], uniforms)) if has_uniforms else None,
        from_uniform=from_uniform if has_uniforms else None,
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
      first, then: (name, family).
      locate: (lam[second name], z1) -> lam of the second family.
      init: key -> initial lam[second name].
    """
    (name1, family1), (name2, family2) = first, then
    # Their noises are independent, whatever links their parameters
    both = product(**{name1: family1, name2: family2})

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
        return family1.log_prob(lam[name1], z[name1]) + family2.log_prob(
            locate(lam[name2], z[name1]), z[name2]
        )

    return family(
        f"chain({name1}={family1.name}, {name2}={family2.name})",
        init=init_both,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        reparameterized={name1: family1.reparameterized, name2: family2.reparameterized},
        fixed_support=family1.fixed_support and family2.fixed_support,
        blocks={name1: family1, name2: family2},
        block_lam=lambda name, lam, before: (
            lam[name1] if name == name1 else locate(lam[name2], before[name1])
        ),
        ordered=True,
        num_uniforms=both.num_uniforms,
        from_uniform=both.from_uniform,
    )


def sum_scalars(terms) -> Scalar:
    """Sum of [] arrays; unlike built-in `sum`, no integer 0 joins in."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


def _split(key: Key, num: int) -> list[Array]:
    return [key] if num == 1 else list(jax.random.split(key, num))
