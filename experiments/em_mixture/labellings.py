"""What naming its components costs a q: averaged over all labellings, by draws."""

import itertools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.em_mixture.methods import Row
from experiments.em_mixture.problem import Problem
from vijax.testing.averages import compiled
from vijax.types import Array, PyTree, Scalar

if TYPE_CHECKING:
    from experiments.em_mixture.__main__ import Config


def all_labellings(config: "Config", problem: Problem, phi: PyTree, gap: float) -> list[Row]:
    """CAVI's q averaged over all C! ways of naming its components: its bound, and with a wider q(w)
    the evidence by importance sampling, every z summed; both by draws.
    """
    orders = jnp.asarray(list(itertools.permutations(range(config.num_components))))
    name = f"over {len(orders)} labellings"
    root = math.sqrt(config.num_draws)
    settings = (config, problem, phi, orders)
    log_w = np.asarray(_mixed_log_weights(*settings))
    wide = np.asarray(_wide_log_weights(*settings))
    weight = np.exp(wide - wide.max())
    return [
        Row(
            f"CAVI's q {name}",
            "w",
            problem.evidence,
            float(log_w.mean()),
            gap - math.log(len(orders)),
            f"at least CAVI's gap less log {config.num_components}!",
            least=True,
            bound_error=float(log_w.std(ddof=1)) / root,
        ),
        Row(
            f"importance sampling {name}",
            "w",
            problem.evidence,
            wide.max() + math.log(weight.mean()),
            0.0,
            "unbiased for the evidence",
            bound_error=float(weight.std(ddof=1) / weight.mean()) / root,
        ),
    ]


def _mixed_log_weights(config: "Config", problem: Problem, phi: PyTree, orders: Array) -> Array:
    """[S] log p(w, z, x) less the log-density of the mixture of all labellings of q, there."""
    of_w, of_z = problem.guide.families["w"], problem.guide.families["z"]
    key_w, key_z = jax.random.split(jax.random.key(config.seed))
    noise = of_w.noise(key_w, config.num_draws)
    local = of_z.noise(key_z, config.num_draws * config.num_data)
    local = local.reshape(config.num_draws, config.num_data, -1)

    @jax.vmap
    def log_weight(noise: PyTree, local: PyTree) -> Scalar:
        w, _ = of_w.transport(phi["w"], noise)
        z, _ = jax.vmap(of_z.transport)(phi["z"], local)

        def relabelled(order: Array) -> Scalar:
            each = jax.vmap(of_z.log_prob)(phi["z"], z[:, order])
            return of_w.log_prob(phi["w"], _renamed(w, order)) + jnp.sum(each)

        joint = jax.vmap(lambda z, x: problem.bayes.log_local((), w, z, x))(z, problem.x)
        joint = jnp.sum(jnp.asarray(joint)) + jnp.asarray(problem.bayes.log_prior((), w))
        return joint - _mixture(jax.vmap(relabelled)(orders))

    return compiled(log_weight, noise, local)


def _wide_log_weights(config: "Config", problem: Problem, phi: PyTree, orders: Array) -> Array:
    """[S] log p(w, x), every z summed, less that of all labellings of a q(w) of twice the width."""
    of_w, lam = problem.guide.families["w"], phi["w"]
    wide = {
        "weights": {"log_concentration": lam["weights"]["log_concentration"] - math.log(4.0)},
        "loc": lam["loc"] | {"log_scale": lam["loc"]["log_scale"] + math.log(2.0)},
    }
    noise = of_w.noise(jax.random.key(config.seed + 1), config.num_draws)
    values = jnp.eye(config.num_components)

    @jax.vmap
    def log_weight(noise: PyTree) -> Scalar:
        w, _ = of_w.transport(wide, noise)

        def datum(x: Array) -> Scalar:
            each = jax.vmap(lambda z: problem.bayes.log_local((), w, z, x))(values)
            return jax.nn.logsumexp(jnp.asarray(each))

        log_q = jax.vmap(lambda order: of_w.log_prob(wide, _renamed(w, order)))(orders)
        joint = jnp.sum(jax.vmap(datum)(problem.x)) + jnp.asarray(problem.bayes.log_prior((), w))
        return joint - _mixture(log_q)

    return compiled(log_weight, noise)


def _renamed(w: PyTree, order: Array) -> PyTree:
    """The components in another order."""
    return jax.tree.map(lambda leaf: leaf[order], w)


def _mixture(log_q: Array) -> Scalar:
    """[] the log-density of an even mixture, from those of its parts [C!]."""
    return jax.nn.logsumexp(log_q) - jnp.log(log_q.size)
