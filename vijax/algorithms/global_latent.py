"""What algorithms for a global latent alone share: what they refuse, and the space they work in."""

from collections.abc import Callable

import jax.numpy as jnp

from vijax.families import Pushforward, lam_like
from vijax.inference import Guide, Model
from vijax.shapes import same_shapes
from vijax.types import Array, Family, Params, PyTree, Scalar


def global_family(name: str, model: Model, guide: Guide) -> Family:
    """Q's family. Raises ValueError unless model and guide have a global latent w, and no other."""
    if model.latents != ("w",) or set(guide.families) != {"w"}:
        raise ValueError(
            f"{name} is for a global latent w alone: a bayes_model with guides.shared(family)."
        )
    return guide.families["w"]


def unconstrained(
    family: Family,
) -> tuple[Family, Callable[[Array], PyTree], Callable[[Array], Scalar]]:
    """(family on R^D, u -> w, u -> [] log|det dw/du|): the family itself, or what it was made of by
    `families.transformed` or `over`.
    """
    made = family.traits.get(Pushforward)
    if made is None:
        return family, lambda u: u, lambda u: jnp.zeros((), u.dtype)
    return made.base, made.forward, made.log_det


def check_lam(name: str, params: Params, family: Family) -> None:
    """Refuse a start that is no `Params` with q's parameters as phi."""
    if not isinstance(params, Params) or set(params.phi) != {"w"}:
        raise ValueError(
            f"{name}: params must be vijax.Params(theta, guide.init(key), ()), with phi "
            '{"w": lam}.'
        )
    same_shapes(params.phi["w"], lam_like(family), f"phi['w'], lam of {family.name},")
