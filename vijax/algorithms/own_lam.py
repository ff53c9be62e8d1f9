"""What algorithms that set q's parameters themselves ask of a guide."""

from collections.abc import Iterable

import jax

from vijax.families import lam_like
from vijax.guides import as_it_is
from vijax.inference import Guide


def check_own_lam(name: str, guide: Guide, latents: Iterable[str]) -> None:
    """Refuse a guide whose phi, for these of its latents, is not lam as it stands.

    Raises:
      ValueError: with what to use instead.
    """
    if guide.refine is not as_it_is:
        raise ValueError(
            f"{name} moves q's own parameters, but this guide refines them further. Use "
            "the guide that it refines, or vijax.descent for this one."
        )
    phi = jax.eval_shape(guide.init, jax.random.key(0))
    for latent in latents:
        family = guide.families[latent]
        like = jax.tree.map(lambda leaf: leaf.shape, lam_like(family))
        rows = () if latent == "w" else (guide.num_data,)
        wanted = jax.tree.map(
            lambda shape, rows=rows: (*rows, *shape), like, is_leaf=lambda s: isinstance(s, tuple)
        )
        if jax.tree.map(lambda leaf: leaf.shape, phi[latent]) != wanted:
            raise ValueError(
                f"{name} moves q's own parameters, but this guide's phi for {latent!r} is "
                f"not lam of {family.name} as it stands (an encoder, or shared parts). Use "
                "guides.shared or guides.per_datapoint, or vijax.descent for this guide."
            )
