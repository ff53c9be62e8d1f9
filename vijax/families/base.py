"""How a family is put together from its parts, for built-in and user-written families alike."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax.core import freeze

from vijax.families.checked import checked, likes
from vijax.families.traits import Density, Moments, UniformNoise
from vijax.types import Array, Family, Key, PyTree, Scalar, Traits

T = TypeVar("T")


def family(
    name: str,
    *,
    init: Callable[[Key], PyTree],
    support: PyTree,
    log_prob: Callable[[PyTree, PyTree], Scalar] | None = None,
    sample: Callable[[Key, PyTree], PyTree] | None = None,
    noise: Callable[[Key, int], PyTree] | None = None,
    transport: Callable[[PyTree, PyTree], tuple[PyTree, Scalar]] | None = None,
    traits: Sequence[Any] = (),
) -> Family:
    """A `Family` from `init`, `support` and one of: `sample` with `log_prob`; the pair `noise` and
    `transport`, with or without `log_prob`.

    With `sample` alone the noise of a sample is a key. `noise` and `transport` let rules shape the
    noise of all K samples at once and get log q for free: `transport(lam, noise) -> (z, log q(z))`.
    A flow whose inverse is unknown has no `log_prob` at a given z: leave it out, and rules that
    would need it refuse the family.

    The functions are for one lam and one z. What has a batch axis is refused while it is traced,
    and so is a z outside the support given to `log_prob` outside of jit.

    Args:
      support: what z can be, from `vijax.supports`; `supports.moving()` if that depends on lam,
        in which case the derivative of an expectation has a boundary term that no rule carries.
      traits: what else the family can do, records from `vijax.families.traits`;
        `Reparameterized()` only if `sample` (or `transport`) is differentiable in lam with the
        right derivative.

    Raises:
      ValueError: if the sampler is incomplete.
    """
    if (noise is None) != (transport is None) or (sample is None and transport is None):
        raise ValueError(
            f"family {name!r} has no complete sampler: give sample(key, lam), or both "
            "noise(key, num_samples) and transport(lam, noise)."
        )
    if log_prob is None and transport is None:
        raise ValueError(
            f"family {name!r} has no density: give log_prob(lam, z), or a transport(lam, noise) "
            "that returns log q(z) beside z."
        )

    def unknown(lam: PyTree, z: PyTree) -> Scalar:
        raise ValueError(f"{name}: log q(z) is known only at the family's own draws.")

    density = unknown if log_prob is None else log_prob
    if noise is None or transport is None:
        noise, transport = _from_sample(sample, density)
    known = () if log_prob is None else (Density(),)
    made = Family(
        name=name,
        init=init,
        noise=noise,
        transport=transport,
        log_prob=density,
        support=freeze(support)
        if isinstance(support, Mapping)
        else support,  # a family is hashable
        traits=traits_of(*known, *traits),
    )
    return checked(made)


def traits_of(*records: Any) -> Traits:
    """The traits that these records make; None stands for one that is not there."""
    return Traits(tuple((type(record), record) for record in records if record is not None))


def with_traits(family: Family, *records: Any) -> Family:
    """The family with these traits added, or put in the place of those of their types."""
    new = traits_of(*records)
    kept = tuple(item for item in family.traits.items if item[0] not in dict(new.items))
    return family._replace(traits=Traits((*kept, *new.items)))


def need(family: Family, kind: type[T]) -> T:
    """The family's trait of that type. Raises ValueError where it has none."""
    found = family.traits.get(kind)
    if found is None:
        raise ValueError(f"{family.name}: {getattr(kind, 'refusal', kind.__name__)}.")
    return found


def _from_sample(
    sample: Any, log_prob: Callable[[PyTree, PyTree], Scalar]
) -> tuple[Callable[[Key, int], Array], Callable[[PyTree, Key], tuple[PyTree, Scalar]]]:
    """Noise and transport of a family that draws from a key: the noise is that key."""

    def transport(lam: PyTree, key: Key) -> tuple[PyTree, Scalar]:
        z = sample(key, lam)
        return z, log_prob(lam, z)

    return jax.random.split, transport


def sample(key: Key, family: Family, lam: PyTree) -> PyTree:
    """One draw z from q(z; lam)."""
    noise = jax.tree.map(lambda leaf: leaf[0], family.noise(key, 1))
    return family.transport(lam, noise)[0]


def log_probs(family: Family, lam: PyTree, z: PyTree) -> Array:
    """[K] log q at K values of z, leaves [K, ...], under one lam."""
    return jax.vmap(family.log_prob, in_axes=(None, 0))(lam, z)


def transports(family: Family, lam: PyTree, noise: PyTree) -> tuple[PyTree, Array]:
    """(z leaves [K, ...], log q [K]) from the noise of K samples."""
    return jax.vmap(family.transport, in_axes=(None, 0))(lam, noise)


def mean(family: Family, lam: PyTree) -> PyTree:
    """E[z], a tree like z. Raises ValueError where no closed form is known."""
    return moments_of(family).mean(lam)


def variance(family: Family, lam: PyTree) -> PyTree:
    """Var[z] of every element, a tree like z. Raises ValueError where no closed form is known."""
    return moments_of(family).variance(lam)


def moments_of(family: Family) -> Moments:
    """The trait, or a ValueError."""
    found = family.traits.get(Moments)
    if found is None:
        raise ValueError(
            f"{family.name}: {Moments.refusal}. Average draws instead: vijax.draws(...) or "
            "families.sample."
        )
    return found


def replace_each(z: Array, values: Array) -> Array:
    """[*shape, *shape]: at [i] z with its entry i replaced by values[i]."""
    one = jnp.eye(z.size, dtype=bool)
    each = jnp.where(one, values.reshape(1, -1), z.reshape(1, -1))
    return each.reshape(z.shape + z.shape)


def least_left(rate: Array) -> Array:
    """The least share of a positive natural parameter that a natural-gradient step leaves.

    With exact gradients of a log-concave target a step ends at (1 - rate) eta + rate eta', eta' > 0
    too, hence above 1 - rate. Noise goes below; it is cut off at a half, far from where small steps
    go, because a cut on one side is a bias that no small rate takes away.
    """
    return jnp.clip(1.0 - rate, 1e-3, 0.5)


def lam_like(family: Family) -> PyTree:
    """Shapes and dtypes of one datum's family parameters, as `jax.ShapeDtypeStruct`s; nothing is
    computed.
    """
    return jax.eval_shape(lambda: family.init(jax.random.key(0)))


def z_like(family: Family) -> PyTree:
    """Shapes and dtypes of one draw, as `jax.ShapeDtypeStruct`s; nothing is computed."""
    return likes(family).z


def as_shape(name: str, size: int | tuple[int, ...], **positive: float) -> tuple[int, ...]:
    """The shape of z: `size` itself, or of a vector of so many numbers.

    Raises:
      ValueError: for axes below 1, and for settings that are not positive.
    """
    shape = size if isinstance(size, tuple) else (size,)
    if not all(isinstance(axis, int) and axis >= 1 for axis in shape):
        raise ValueError(
            f"{name}({size!r}): give the number of elements of a vector z, an int of at least 1, "
            "or the shape of z, such as (3, 2), or () for one number."
        )
    check_positive(name, **positive)
    return shape


def sized(name: str, shape: tuple[int, ...]) -> str:
    """A family's name: "diag_normal(3)", "diag_normal((3, 2))"."""
    return f"{name}({shape[0] if len(shape) == 1 else shape})"


def vector_only(shape: tuple[int, ...], record: T) -> T | None:
    """The trait, where z is a vector: what rules read from it are [D] and [D, D]."""
    return record if len(shape) == 1 else None


def uniform_noise(shape: tuple[int, ...], inverse_cdf: Callable[[Array], Array]) -> UniformNoise:
    """The trait of a family whose noise, of z's shape, is an inverse distribution function of
    uniform numbers.
    """
    return UniformNoise(math.prod(shape), lambda u: inverse_cdf(u).reshape(shape))


def check_positive(name: str, **settings: float) -> None:
    """Refuse settings that are not positive."""
    for setting, value in settings.items():
        if not value > 0.0:
            raise ValueError(f"{name}({setting}={value!r}): {setting} must be positive.")
