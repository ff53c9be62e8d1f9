"""How a family is put together from its parts, for built-in and user-written families alike."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from vijax.types import Array, Family, Key, PyTree, Scalar, WeakDerivative


def family(
    name: str,
    *,
    init: Callable[[Key], PyTree],
    log_prob: Callable[[PyTree, PyTree], Scalar],
    sample: Callable[[Key, PyTree], PyTree] | None = None,
    noise: Callable[[Key, int], PyTree] | None = None,
    transport: Callable[[PyTree, PyTree], tuple[PyTree, Scalar]] | None = None,
    reparameterized: PyTree = False,
    fixed_support: bool = True,
    entropy: Callable[[PyTree], Scalar] | None = None,
    kl: Callable[[PyTree, PyTree], Scalar] | None = None,
    support: Callable[[], PyTree] | None = None,
    support_size: int | None = None,
    bernoulli_logits: Callable[[PyTree], Array] | None = None,
    categorical_logits: Callable[[PyTree], Array] | None = None,
    blocks: dict[str, Family] | None = None,
    block_lam: Callable[[str, PyTree, PyTree], PyTree] | None = None,
    ordered: bool = False,
    inverse: Callable[[PyTree, PyTree], PyTree] | None = None,
    num_uniforms: int | None = None,
    from_uniform: Callable[[Array], PyTree] | None = None,
    normal_moments: Callable[[PyTree], tuple[Array, Array]] | None = None,
    gamma_parameters: Callable[[PyTree], tuple[Array, Array]] | None = None,
    weak_derivative: Callable[[Key, PyTree, PyTree], WeakDerivative] | None = None,
) -> Family:
    """A `Family` from `init`, `log_prob` and either `sample` or the pair (`noise`, `transport`).

    With `sample` alone the noise of a sample is a key. `noise` and `transport` let rules shape the
    noise of all K samples at once and get log q for free: `transport(lam, noise) -> (z, log q(z))`.

    Args:
      reparameterized: True only if `sample` (or `transport`) is differentiable in lam with the
        right derivative.
      fixed_support: False if the set of possible z moves with lam; score-function rules are then
        refused.

    Raises:
      ValueError: if neither way of sampling, or only half of the second, is given.
    """
    if (noise is None) != (transport is None) or (sample is None and transport is None):
        raise ValueError(
            f"family {name!r} has no complete sampler: give sample(key, lam), or both noise(key, "
            f"num_samples) and "
            "transport(lam, noise)."
        )
    if noise is None or transport is None:
        given: Any = sample

        def keys(key: Key, num_samples: int) -> Array:
            return jax.random.split(key, num_samples)

        def from_key(lam: PyTree, key: Key) -> tuple[PyTree, Scalar]:
            z = given(key, lam)
            return z, log_prob(lam, z)

        noise, transport = keys, from_key
    if sample is None:
        draw_noise, move = noise, transport

        def from_noise(key: Key, lam: PyTree) -> PyTree:
            return move(lam, jax.tree.map(lambda leaf: leaf[0], draw_noise(key, 1)))[0]

        sample = from_noise
    if isinstance(reparameterized, dict):
        reparameterized = FrozenDict(reparameterized)
    return Family(
        name,
        init,
        sample,
        log_prob,
        noise,
        transport,
        reparameterized,
        fixed_support,
        entropy,
        kl,
        support,
        support_size,
        bernoulli_logits,
        categorical_logits,
        None if blocks is None else FrozenDict(blocks),
        block_lam,
        ordered,
        inverse,
        num_uniforms,
        from_uniform,
        normal_moments,
        gamma_parameters,
        weak_derivative,
    )


def replace_each(z: Array, values: Array) -> Array:
    """[D, D]: row i is z [D] with its entry i replaced by values_i."""
    return jnp.where(jnp.eye(z.shape[0], dtype=bool), values[None, :], z[None, :])


def lam_like(family: Family) -> PyTree:
    """Shapes and dtypes of one datum's family parameters, as `jax.ShapeDtypeStruct`s; nothing is
    computed.
    """
    return jax.eval_shape(lambda: family.init(jax.random.key(0)))


def z_like(family: Family) -> PyTree:
    """Shapes and dtypes of one draw, as `jax.ShapeDtypeStruct`s; nothing is computed."""
    return jax.eval_shape(lambda: family.sample(jax.random.key(0), family.init(jax.random.key(0))))
