"""What a rule learns or remembers, brought up at frozen parameters, so that rules are compared as
they are in use.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import optax

from vijax.inference import Estimator
from vijax.types import Array, Batch, Key, Params, PyTree


class Learned(NamedTuple):
    """What an estimator's own training has made of it."""

    control: PyTree
    state: PyTree


class Place(NamedTuple):
    """Where one estimator is measured: the common params with its own control, and its state."""

    params: Params
    state: PyTree


def learn(
    key: Key,
    estimator: Estimator,
    params: Params,
    batch: Batch,
    *,
    num_steps: int = 300,
    optimizer: optax.GradientTransformation | None = None,
) -> Learned:
    """Control variates, learned baselines and running means after `num_steps` steps at fixed theta,
    phi and batch.

    Args:
      params: its control is ignored; learning starts from initialisation. As stored, or in q's own
        parameters, `vijax.in_lam(estimator, params, batch)`.
      optimizer: of control; None: Adam at 0.01.
    """
    own_key, run_key = jax.random.split(key)
    place = params._replace(control=estimator.init_params(own_key).control)
    state = estimator.init(own_key, place)
    if not jax.tree.leaves((place.control, state)):
        return Learned(place.control, state)
    chosen = _ADAM if optimizer is None else optimizer
    return Learned(
        *_run(run_key, place, state, batch, num_steps, estimator=estimator, optimizer=chosen)
    )


def places(
    key: Key, estimators: Mapping[str, Estimator], params: Params, learned: Mapping[str, Learned]
) -> dict[str, Place]:
    """Every estimator's place, with what it learned, or as it is initialised."""

    def place(name: str, estimator: Estimator) -> Place:
        if name in learned:
            control, state = learned[name]
        else:
            control = estimator.init_params(key).control
            state = estimator.init(key, params._replace(control=control))
        # Without weak types, which initial parameters may have and trained ones have not: one
        # program serves both.
        return jax.tree.map(
            lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype),
            Place(params._replace(control=control), state),
        )

    return {name: place(name, estimator) for name, estimator in estimators.items()}


_ADAM = optax.adam(0.01)  # one object, so that one program serves every call


@functools.partial(jax.jit, static_argnames=("estimator", "optimizer"))
def _run(
    key: Key,
    params: Params,
    state: PyTree,
    batch: Batch,
    num_steps: int,
    *,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
) -> tuple[PyTree, PyTree]:
    def step(number: Array, carry: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
        control, state, moments = carry
        place = params._replace(control=control)
        estimate, state = estimator.estimate(jax.random.fold_in(key, number), place, state, batch)
        updates, moments = optimizer.update(estimate.grads.control, moments, control)
        return optax.apply_updates(control, updates), state, moments

    start = (params.control, state, optimizer.init(params.control))
    return jax.lax.fori_loop(0, num_steps, step, start)[:2]
