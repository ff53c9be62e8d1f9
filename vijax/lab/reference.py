"""What the mean of a gradient should be: what bias is looked for against."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from vijax.types import Array, Params


class Reference(NamedTuple):
    """What a gradient's mean should be: exact, or measured well by an unbiased estimator.

    Attributes:
      gradient: of the loss; its block `control` is not looked at.
      error: its standard error; None: exact.
      rounding: of the estimator's own arithmetic, absolute: for gradients of which large terms
        cancel.
    """

    gradient: Params
    error: Params | None = None
    rounding: float = 0.0


class Known(NamedTuple):
    """A reference, flat.

    Attributes:
      exact: [P]; nan in control.
      error: [P].
      rounding: as in `Reference`.
    """

    exact: Array
    error: Array
    rounding: float


def flat(reference: Reference, params: Params) -> Known:
    """The reference as vectors [P]. What control's gradient should be nobody knows: nan.

    Raises:
      TypeError: if it holds something else than Params.
      ValueError: if its shapes are not those of the gradient at params.
    """
    given = [tree for tree in (reference.gradient, reference.error) if tree is not None]
    wanted = jax.tree.map(np.shape, params._replace(control=()))
    for tree in given:
        if not isinstance(tree, Params):
            raise TypeError(
                f"a Reference holds Params(theta, phi, control) of gradients, not "
                f"{type(tree).__name__}."
            )
        shapes = jax.tree.map(np.shape, tree._replace(control=()))
        if shapes != wanted:
            raise ValueError(f"the reference has shapes {shapes}, but the gradient {wanted}.")
    unknown = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), params.control)
    exact = ravel_pytree(reference.gradient._replace(control=unknown))[0]
    error = jnp.zeros_like(exact)
    if reference.error is not None:
        error = ravel_pytree(reference.error._replace(control=unknown))[0]
    return Known(exact, error, reference.rounding)
