"""REBAR with a learned critic of the relaxed z in its control variate: RELAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from vijax.networks import as_network
from vijax.rules.rebar import Control, init_scale, relaxed_control_rule, scaled_integrand
from vijax.rules.relaxed_scores import Relaxation, concrete
from vijax.types import Array, Key, PyTree, Rule, Scalar


def relax(
    critic: Any = None,
    *,
    z: PyTree = None,
    x: PyTree = None,
    temperature: float = 0.5,
    relaxation: Relaxation = concrete,
    tied: bool = False,
    use_integrand: bool = True,
) -> Rule:
    """`rebar` with a learned critic of the relaxed z added to the control: c = s f(soft z) + r(soft
    z, x).

    Grathwohl et al. 2018, eq. 8.

    Args:
      critic: relaxed z, or a dict {"z": relaxed z, "x": datum} if `x` is given -> one number; a
        flax module or an (init, apply) pair, see `networks.as_network`. It must be twice
        differentiable in the relaxed z: the variance's gradient differentiates its slope, and at
        the kinks of rectifiers a part of that is lost (tanh, silu or softplus have none). Default:
        two hidden layers, zero at first.
      z: one latent (or `families.z_like(family)`), for modules that are initialised by a call, as
        the default is.
      x: one datum, for critics that look at it.
      use_integrand: False leaves the integrand out of c: it is then a black box, never
        differentiated.

    Unbiased for: the gradient of the ELBO, in theta and phi, whatever the control's values.
    Requires:     independent Bernoulli or one-hot categorical sites with logits; an integrand
                  differentiable at relaxed z, unless left out; a linear objective.
    State:        none; {"scale", "log_temperature", "critic"} are in `control`.
    Cost:         as `rebar`, and the critic's second derivatives; K evaluations if the integrand is
                  left out.

    Raises:
      ValueError: if a flax.linen critic is given no latent for its shapes.
    """
    if z is None and (critic is None or isinstance(critic, linen.Module)):
        raise ValueError(
            "relax: a flax.linen critic needs one latent for its shapes. Pass "
            "z=families.z_like(family)."
        )
    looks_at_x = x is not None
    network = as_network(
        Critic() if critic is None else critic, {"z": z, "x": x} if looks_at_x else z
    )

    def init(key: Key) -> dict[str, PyTree]:
        return (init_scale(key) if use_integrand else {}) | {"critic": network.init(key)}

    def values(
        control: PyTree, integrand: Callable[[Array], Array], soft: Array, x: PyTree
    ) -> Array:
        def judge(z: Array) -> Scalar:
            inputs = {"z": z, "x": x} if looks_at_x else z
            return jnp.reshape(network.apply(control["critic"], inputs), ())

        judged = jax.vmap(judge)(soft)
        return scaled_integrand(control, integrand, soft, x) + judged if use_integrand else judged

    return relaxed_control_rule(
        f"relax({'' if use_integrand else 'use_integrand=False'})",
        Control(init, values, integrand_at_soft=use_integrand),
        temperature=temperature,
        relaxation=relaxation,
        tied=tied,
        paper="Grathwohl et al. 2018",
    )


class Critic(linen.Module):
    """Two smooth hidden layers (silu) on everything it is given, flattened; its output is zero at
    first.
    """

    width: int = 64

    @linen.compact
    def __call__(self, inputs: PyTree) -> Array:
        """One number for a pytree of arrays in [0, 1], such as a relaxed z."""
        hidden = 2.0 * jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(inputs)]) - 1.0
        for _ in range(2):
            hidden = linen.silu(linen.Dense(self.width)(hidden))
        return linen.Dense(1, kernel_init=linen.initializers.zeros)(hidden)[0]
