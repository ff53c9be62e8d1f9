"""Traits: what a family may be able to do beyond drawing, each a small record keyed by its type.

`family.traits.get(Entropy)` is the record or None. A rule lists the types that it needs. With the
type stand the clause that completes "this rule on that family: ..." when it is missing, `refusal`,
and, where it says what kind of latent this is, the word for that in the table of rules, `label`. A
trait with `joint` says what it is of independent blocks together, {block: its record} -> record: a
`product` then has it if every block has. A new trait is a class here and a record in the family.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.types import Array, Family, PyTree, Scalar

MAX_SUPPORT = 2**16


class Reparameterized(NamedTuple):
    """`transport` is differentiable in lam with the right derivative."""

    label = "reparameterized"
    refusal = (
        "it has no differentiable sampler (no Reparameterized trait), so the path from q's "
        "parameters through z would silently carry a zero gradient"
    )

    @staticmethod
    def joint(parts: Mapping[str, "Reparameterized"]) -> "Reparameterized":
        """Of independent blocks together."""
        return Reparameterized()


class Density(NamedTuple):
    """`log_prob(lam, z)` is known at any z of the support, not only at the family's own draws."""

    refusal = (
        "its density is known only at its own draws (no Density trait), but this rule evaluates "
        "log q at a given z with parameters of its own choice"
    )


class Entropy(NamedTuple):
    """Differential or discrete entropy, exact.

    Attributes:
      value: lam -> [] nats.
    """

    value: Callable[[PyTree], Scalar]
    refusal = "the family has no closed-form entropy"

    @staticmethod
    def joint(parts: Mapping[str, "Entropy"]) -> "Entropy":
        """Of independent blocks together."""
        return Entropy(lambda lam: total(part.value(lam[name]) for name, part in parts.items()))


class Kl(NamedTuple):
    """Kullback-Leibler divergence between two members, exact.

    Attributes:
      value: (lam, lam2) -> [] nats, KL(q(lam) || q(lam2)).
    """

    value: Callable[[PyTree, PyTree], Scalar]
    refusal = "the family has no closed-form KL divergence"

    @staticmethod
    def joint(parts: Mapping[str, "Kl"]) -> "Kl":
        """Of independent blocks together."""
        return Kl(lambda lam, lam2: total(p.value(lam[n], lam2[n]) for n, p in parts.items()))


class Moments(NamedTuple):
    """Mean and variance of every element of z.

    Attributes:
      mean: lam -> tree like z.
      variance: lam -> tree like z.
    """

    mean: Callable[[PyTree], PyTree]
    variance: Callable[[PyTree], PyTree]
    refusal = "its mean and variance have no known closed form"

    @staticmethod
    def joint(parts: Mapping[str, "Moments"]) -> "Moments":
        """Of independent blocks together."""
        return Moments(
            lambda lam: {name: part.mean(lam[name]) for name, part in parts.items()},
            lambda lam: {name: part.variance(lam[name]) for name, part in parts.items()},
        )


class FiniteSupport(NamedTuple):
    """Every value of z. Attach it by `finite_support`, which leaves large ones out.

    Attributes:
      values: () -> leaves [S, ...].
      size: S, at most MAX_SUPPORT.
    """

    values: Callable[[], PyTree]
    size: int
    label = "finite support"
    refusal = (
        f"its support has infinitely many points, or more than the {MAX_SUPPORT} that can be summed"
    )

    @staticmethod
    def joint(parts: Mapping[str, "FiniteSupport"]) -> "FiniteSupport | None":
        """Every combination of the blocks' values."""

        def values() -> PyTree:
            sizes = (jnp.arange(part.size) for part in parts.values())
            places = dict(zip(parts, jnp.meshgrid(*sizes, indexing="ij"), strict=True))
            return {
                name: jax.tree.map(lambda leaf, at=places[name]: leaf[at.ravel()], part.values())
                for name, part in parts.items()
            }

        return finite_support(values, math.prod(part.size for part in parts.values()))


def finite_support(values: Callable[[], PyTree], size: int) -> FiniteSupport | None:
    """The trait, if the support is small enough to be summed."""
    return FiniteSupport(values, size) if size <= MAX_SUPPORT else None


class Blocks(NamedTuple):
    """z and lam are dicts of named parts.

    Attributes:
      families: of the parts, in the order in which they are drawn.
      lam: (block, lam, z of the blocks before it) -> the block's lam.
      ordered: do later parts depend on earlier ones?
    """

    families: Mapping[str, Family]
    lam: Callable[[str, PyTree, PyTree], PyTree]
    ordered: bool
    refusal = "it has no named blocks"


class IndependentBlocks(NamedTuple):
    """The blocks are independent of each other: a `families.product`."""

    label = "product"
    refusal = (
        "it is no product of independent named blocks, one of which could be credited without the "
        "others"
    )


class Pushforward(NamedTuple):
    """The family is another one on R^D seen through a smooth one-to-one map, with its lam.

    Attributes:
      base: the family of u.
      forward: u [D] -> z.
      log_det: u [D] -> [] log|det dz/du|.
    """

    base: Family
    forward: Callable[[Array], PyTree]
    log_det: Callable[[Array], Scalar]
    refusal = "it was not made from a family on R^D by a bijector"


class Inverse(NamedTuple):
    """The noise behind a draw.

    Attributes:
      noise: (lam, z) -> the noise that `transport` takes to z.
    """

    noise: Callable[[PyTree, PyTree], PyTree]
    refusal = "its sampler has no known inverse, so no noise is known for a given z"

    @staticmethod
    def joint(parts: Mapping[str, "Inverse"]) -> "Inverse":
        """Of independent blocks together."""
        return Inverse(lambda lam, z: {n: part.noise(lam[n], z[n]) for n, part in parts.items()})


class UniformNoise(NamedTuple):
    """The noise of one sample as a function of uniform numbers: what antithetic and quasi-Monte
    Carlo draws need.

    Attributes:
      num_uniforms: U.
      from_uniform: u [U] in (0, 1) -> the noise of one sample, by inverse CDFs.
    """

    num_uniforms: int
    from_uniform: Callable[[Array], PyTree]
    refusal = "its noise is no known function of uniform numbers (no UniformNoise trait)"

    @staticmethod
    def joint(parts: Mapping[str, "UniformNoise"]) -> "UniformNoise":
        """Of independent blocks together: the uniform numbers are dealt out in their order."""
        ends = list(itertools.accumulate(part.num_uniforms for part in parts.values()))

        def from_uniform(numbers: Array) -> PyTree:
            pieces = dict(zip(parts, jnp.split(numbers, ends[:-1]), strict=True))
            return {name: part.from_uniform(pieces[name]) for name, part in parts.items()}

        return UniformNoise(ends[-1], from_uniform)


class Natural(NamedTuple):
    """Steps along the natural gradient of an exponential family: eta + rate dL/dmu, eta its natural
    and mu its mean parameters, which is the gradient times the inverse Fisher information.
    Khan and Nielsen 2018.

    Attributes:
      step: (lam, dL/dlam, rate []) -> lam after the step. Where a step would leave the family (a
        precision below 0), it is cut short.
    """

    step: Callable[[PyTree, PyTree, Scalar], PyTree]
    refusal = "no natural-gradient step is known for it"

    @staticmethod
    def joint(parts: Mapping[str, "Natural"]) -> "Natural":
        """Of independent blocks together."""
        return Natural(
            lambda lam, slope, rate: {
                name: part.step(lam[name], slope[name], rate) for name, part in parts.items()
            }
        )


def total(terms: Iterable[Scalar]) -> Scalar:
    """Sum of [] arrays; unlike built-in `sum`, no integer 0 joins in."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first
