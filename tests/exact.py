"""Exact bounds of the tiny problems: sums over finite supports, Gauss-Hermite quadrature over normals."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from problems import N, Problem

import vijax as vj


def quadrature(family: vj.Family, lam, nodes: int):
    """(z leaves [M, ...], weights [M]) such that E_q[f] = sum_m weights_m f(z_m), differentiable in lam."""
    if family.support is not None:
        z = family.support()
        return z, jnp.exp(jax.vmap(family.log_prob, (None, 0))(lam, z))
    if family.blocks is not None:
        z, weights = {}, jnp.ones(1)  # the nodes of the blocks so far; each grows a grid of the next block
        for name, block in family.blocks.items():
            place = jax.vmap(lambda z, name=name: family.block_lam(name, lam, z), axis_size=len(weights))
            next_z, next_weights = jax.vmap(lambda part, block=block: quadrature(block, part, nodes))(place(z))
            size = next_weights.shape[1]
            z = jax.tree.map(lambda leaf, size=size: jnp.repeat(leaf, size, axis=0), z)
            z[name] = next_z.reshape(-1, *next_z.shape[2:])
            weights = jnp.repeat(weights, size) * next_weights.ravel()
        return z, weights
    dim = jax.eval_shape(lambda: family.noise(jax.random.key(0), 1)).shape[1]
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    noise = jnp.asarray(list(itertools.product(points, repeat=dim)))
    z, _ = jax.vmap(family.transport, (None, 0))(lam, noise)
    return z, jnp.asarray(np.prod(list(itertools.product(weights / weights.sum(), repeat=dim)), axis=1))


def expectation(objective, num_samples, weights, log_w):
    """Exact E[objective(log_w of K independent draws)] from the values [M] at quadrature points with weights [M]."""
    if objective is vj.objectives.elbo or num_samples == 1:
        return jnp.vdot(weights, log_w)
    tuples = np.array(list(itertools.product(range(len(weights)), repeat=num_samples)))
    return jnp.vdot(jnp.prod(weights[tuples], axis=1), jax.vmap(objective)(log_w[tuples]))


def exact_loss(problem: Problem, objective, num_samples: int) -> Callable[[vj.Params, vj.Batch], jax.Array]:
    """Minus the exact bound on all N data, estimated from a minibatch by the factor N / B. float64, differentiable.

    Args:
      objective: of the only level; or {"w": ..., "z": ...} as `vj.estimator` takes it.    num_samples: K of that objective.
    """
    model, guide, nodes = problem.model, problem.guide, problem.nodes

    def local_values(params, w, index, x, nodes=nodes):
        phi = jax.tree.map(lambda table, leaf: leaf[index] if table else leaf, guide.tables(params.phi), params.phi)
        lam = guide.locate_z(phi, x)
        z, weights = quadrature(guide.family_z, lam, nodes)
        log_q = jax.vmap(guide.family_z.log_prob, (None, 0))(lam, z)
        return jax.vmap(lambda z: model.log_local(params.theta, w, z, x))(z) - log_q, weights

    def outer(params, batch, lam, objective_z, samples_z):
        """log p(w) - log q(w) + N / B times the local bounds, at every quadrature point of w."""

        def at(w):
            def local(index, x):
                if guide.family_z is None:
                    return model.log_local(params.theta, w, None, x)
                values, weights = local_values(params, w, index, x)
                return expectation(objective_z, samples_z, weights, values)

            total = jnp.sum(jax.vmap(local)(batch.index, batch.x)) * N / len(batch.index)
            return model.log_prior(params.theta, w) + total - guide.family_w.log_prob(lam, w)

        w, weights = quadrature(guide.family_w, lam, nodes)
        return jax.vmap(at)(w), weights

    def joint(params, batch, lam):
        """The same with every datum's z joined to w: [M_w M_z^N] values (a coarser grid), for objectives of joint samples."""
        w, weights = quadrature(guide.family_w, lam, nodes)

        def at(w):
            values, probs = jax.vmap(lambda index, x: local_values(params, w, index, x, nodes // 3))(batch.index, batch.x)
            grids = np.meshgrid(*[np.arange(values.shape[1])] * N, indexing="ij")
            total = sum(values[i][grid.ravel()] for i, grid in enumerate(grids))
            prob = jnp.prod(jnp.stack([probs[i][grid.ravel()] for i, grid in enumerate(grids)]), axis=0)
            return model.log_prior(params.theta, w) + total - guide.family_w.log_prob(lam, w), prob

        values, probs = jax.vmap(at)(w)
        return values.ravel(), (probs * weights[:, None]).ravel()

    def loss(params, batch):
        if guide.family_w is None:
            terms = [expectation(objective, num_samples, *reversed(local_values(params, None, batch.index[i], batch.x[i])))
                     for i in range(len(batch.index))]  # fmt: skip
            return -sum(terms) * N / len(batch.index)
        lam = guide.locate_w(params.phi)
        objectives = objective if isinstance(objective, dict) else {"w": objective, "z": vj.objectives.elbo}
        if guide.family_z is not None and objectives["w"] is not vj.objectives.elbo:
            values, weights = joint(params, batch, lam)
        else:
            values, weights = outer(params, batch, lam, objectives["z"], num_samples)
        return -expectation(objectives["w"], num_samples, weights, values)

    return loss
