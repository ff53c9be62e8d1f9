"""What a rule learns or remembers, brought up at frozen parameters, so that rules are compared as
they are in use.
"""

import functools

import jax
import optax

from vijax.lab.comparison import Learned
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree


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
      params: its control is ignored; learning starts from initialisation.
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
