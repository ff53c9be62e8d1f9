"""Exact bounds of the tiny problems of problems.py."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from problems import N, Problem

import vijax as vj
from vijax.families import log_probs
from vijax.rows import gather
from vijax.testing.grids import expectation, quadrature


def exact_loss(
    problem: Problem, objective, num_samples: int
) -> Callable[[vj.Params, vj.Batch], jax.Array]:
    """Minus the exact bound on all N data, estimated from a minibatch by the factor N / B. float64,
    differentiable.

    Args:
      objective: of the only level; or {"w": ..., "z": ...} as `vj.estimator` takes it.
      num_samples: K of that objective.
    """
    model, guide, nodes = problem.model, problem.guide, problem.nodes
    family_w, family_z = guide.families.get("w"), guide.families.get("z")

    def local_values(params, w, index, x, nodes=nodes):
        lam = guide.at(gather(guide.is_table(params.phi), params.phi, index), x)
        z, weights = quadrature(family_z, lam, nodes)
        log_q = log_probs(family_z, lam, z)
        return jax.vmap(lambda z: model.log_local(params.theta, w, z, x))(z) - log_q, weights

    def outer(params, batch, lam, objective_z, samples_z):
        """log p(w) - log q(w) + N / B times the local bounds, at every quadrature point of w."""

        def at(w):
            def local(index, x):
                if family_z is None:
                    return model.log_local(params.theta, w, None, x)
                values, weights = local_values(params, w, index, x)
                return expectation(objective_z, samples_z, weights, values)

            total = jnp.sum(jax.vmap(local)(batch.index, batch.x)) * N / len(batch.index)
            return model.log_prior(params.theta, w) + total - family_w.log_prob(lam, w)

        w, weights = quadrature(family_w, lam, nodes)
        return jax.vmap(at)(w), weights

    def joint(params, batch, lam):
        """The same with every datum's z joined to w: [M_w M_z^N] values (a coarser grid), for
        objectives of joint samples.
        """
        w, weights = quadrature(family_w, lam, nodes)

        def at(w):
            values, probs = jax.vmap(
                lambda index, x: local_values(params, w, index, x, nodes // 3)
            )(batch.index, batch.x)
            grids = np.meshgrid(*[np.arange(values.shape[1])] * N, indexing="ij")
            total = sum(values[i][grid.ravel()] for i, grid in enumerate(grids))
            prob = jnp.prod(
                jnp.stack([probs[i][grid.ravel()] for i, grid in enumerate(grids)]), axis=0
            )
            return model.log_prior(params.theta, w) + total - family_w.log_prob(lam, w), prob

        values, probs = jax.vmap(at)(w)
        return values.ravel(), (probs * weights[:, None]).ravel()

    def loss(params, batch):
        if family_w is None:
            terms = [
                expectation(
                    objective,
                    num_samples,
                    *reversed(local_values(params, None, batch.index[i], batch.x[i])),
                )
                for i in range(len(batch.index))
            ]
            return -sum(terms) * N / len(batch.index)
        lam = guide.global_lam(params.phi)
        objectives = (
            objective if isinstance(objective, dict) else {"w": objective, "z": vj.objectives.elbo}
        )
        if family_z is not None and not objectives["w"].linear:
            values, weights = joint(params, batch, lam)
        else:
            values, weights = outer(params, batch, lam, objectives["z"], num_samples)
        return -expectation(objectives["w"], num_samples, weights, values)

    return loss
