"""The gradient of a plain expectation, at several points in one go."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

import vijax as vj
from vijax import lab
from vijax.estimators import EVALUATION
from vijax.objectives import elbo
from vijax.types import Array, Key, PyTree, Scalar


class Expectation(NamedTuple):
    """E_q(z; lam_i)[f(z, x_i)] for i = 1..B: several points (lam_i, x_i) are measured in one go.

    Attributes:
      f: (z, x_i) -> [].
      locate: phi_i -> lam_i.
    """

    family: vj.Family
    f: Callable[[Any, Any], Scalar]
    locate: Callable[[PyTree], PyTree] = lambda phi: phi

    def marked(self, z: PyTree, x: PyTree) -> Scalar:
        """The function, counted as an evaluation of the log-joint."""
        return checkpoint_name(self.f(z, x), EVALUATION)


def estimator(
    problem: Expectation, rule: vj.Rule, num_samples: int, num_points: int
) -> vj.Estimator:
    """The gradient of -sum_i E[f(z, x_i)] in phi, leaves [B, ...]. No log q is added to f, unlike
    in `vj.estimator`.

    Learned controls and running means are one per point, leaves [B, ...]. phi is to be filled in.

    Raises:
      ValueError: if the rule is illegal for this family.
    """
    rule.check(problem.family, elbo, num_samples, None)

    def init_params(key: Key) -> vj.Params:
        return vj.Params((), (), jax.vmap(rule.init)(jax.random.split(key, num_points)))

    def init(key: Key, params: vj.Params) -> PyTree:
        def repeated(leaf: Array) -> Array:
            return jnp.broadcast_to(leaf, (num_points, *jnp.shape(leaf)))

        return jax.tree.map(repeated, rule.init_state())

    def point(
        key: Key, phi: PyTree, x: PyTree, control: PyTree, state: PyTree
    ) -> tuple[Scalar, vj.Aux]:
        q = vj.Q(problem.family, problem.locate(phi))
        setting = vj.Setting(
            objective=elbo, num_samples=num_samples, control=control, state=state, x=x
        )
        return rule.surrogate(key, q, lambda s: problem.marked(s.z, x), setting)

    def estimate(
        key: Key, params: vj.Params, state: PyTree, batch: vj.Batch
    ) -> tuple[vj.Estimate, PyTree]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.index)

        def loss(params: vj.Params) -> tuple[Scalar, PyTree]:
            values, aux = jax.vmap(point)(keys, params.phi, batch.x, params.control, state)
            return -jnp.sum(values), aux.stats

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        after = jax.vmap(rule.update, axis_size=num_points)(state, stats)
        return vj.Estimate(value, grads, ()), after

    return vj.estimator_from(estimate, init_params, num_data=num_points, init=init)


def measured(
    key: Key,
    made: vj.Estimator,
    phi: PyTree,
    x: PyTree,
    *,
    num_draws: int,
    exact: PyTree = None,
    learned: lab.Learned | None = None,
) -> lab.GradientReport:
    """The report at phi, leaves [B, ...], and x, leaves [B, ...].

    Args:
      exact: dE[f]/dphi, to look for bias.
      learned: what the rule learns or remembers; None: as initialised.
    """
    batch, place = vj.Batch(x, jnp.arange(made.num_data)), vj.Params((), phi, ())
    own = lab.learn(key, made, place, batch, num_steps=0) if learned is None else learned
    known = None
    if exact is not None:  # estimators follow the loss: minus
        known = lab.Reference(vj.Params((), jax.tree.map(jnp.negative, exact), ()))
    return lab.gradient_report(
        key,
        made,
        place._replace(control=own.control),
        own.state,
        batch,
        num_draws=num_draws,
        reference=known,
    )
