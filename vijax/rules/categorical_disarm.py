"""Antithetic pairs of one-hot variables: DisARM for categories. A class is a leaf of a binary tree,
its nodes are coupled.

Both draws of a pair walk down the same tree, with uniforms u and 1 - u at each node; the rules
differ in the credit that a node gets where both, or only one, came by. The classes are sorted per
site, the least probable first.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import CategoricalSites, Density, need
from vijax.rules.base import from_gradient, keys, no_aux, rule
from vijax.rules.coupled import evaluate_groups
from vijax.types import Array, Aux, Integrand, Key, Q, Requirements, Rule, Scalar, Setting

Credit = Callable[[Array, Array, Array], Array]
"""(node logits [K, 2, ..., C-1], turns taken [K, 2, ..., C-1] in {0, 1}, nodes reached [K, 2, ...,
C-1]) -> [K, 2, ..., C-1]: what the signal of each draw is multiplied with; the gradient in the node
logits is their sum.
"""


def disarm_stick_breaking() -> Rule:
    """The tree is a comb ("is it class 1? else, class 2? ..."); DisARM at nodes both reach,
    leave-one-out below.

    Dong et al. 2021 (coupled gradient estimators), DisARM-SB. With two classes this is `disarm()`.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     one-hot categorical sites with logits, one or several. K samples are K pairs.
    State:        none.
    Cost:         2K evaluations of the integrand per datum, no derivative in z; 4K^2 scalars for
                  non-linear objectives.
    """
    return _on_tree("disarm_stick_breaking()", comb, _shared_node_credit)


def disarm_tree() -> Rule:
    """The tree is balanced; DisARM at nodes both reach, leave-one-out below. Dong et al. 2021,
    DisARM-Tree.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     one-hot categorical sites with logits, one or several. K samples are K pairs.
    State:        none.
    Cost:         2K evaluations of the integrand per datum, no derivative in z; 4K^2 scalars for
                  non-linear objectives.
    """
    return _on_tree("disarm_tree()", balanced, _shared_node_credit)


def disarm_importance() -> Rule:
    """Leave-one-out on the pair, weighted by P(pair if independent) / P(pair as coupled). Dong et
    al. 2021, DisARM-IW.

    On a comb whose least probable classes come first no pair that can happen has coupled
    probability 0; a weight is at most a product of 4/3, one factor per class passed.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     one-hot categorical sites with logits, one or several. K samples are K pairs.
    State:        none.
    Cost:         2K evaluations of the integrand per datum, no derivative in z; 4K^2 scalars for
                  non-linear objectives.
    """
    return _on_tree("disarm_importance()", comb, _importance_credit)


def comb(num_classes: int) -> np.ndarray:
    """[C, C-1] turns: 1 where leaf c lies beyond the right turn of node n, -1 the left one, 0 where
    not under n.

    Node n asks "is it leaf n?"; the last leaf is what remains.
    """
    leaf, node = np.arange(num_classes)[:, None], np.arange(num_classes - 1)
    return np.where(leaf == node, 1, np.where(leaf > node, -1, 0))


def balanced(num_classes: int) -> np.ndarray:
    """[C, C-1] turns, as in `comb`: every node halves the leaves under it."""
    turns, spans = np.zeros((num_classes, num_classes - 1), int), [(0, num_classes)]
    for node in range(num_classes - 1):
        start, stop = spans.pop()
        middle = (start + stop) // 2
        turns[start:middle, node], turns[middle:stop, node] = -1, 1
        spans += [span for span in ((start, middle), (middle, stop)) if span[1] - span[0] > 1]
    return turns


def _on_tree(name: str, tree: Callable[[int], np.ndarray], credit: Credit) -> Rule:
    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        logits = need(q.family, CategoricalSites).logits(q.lam)
        order = jnp.argsort(jax.lax.stop_gradient(logits), axis=-1)
        turns = tree(logits.shape[-1])
        nodes = node_logits(turns, jnp.take_along_axis(logits, order, axis=-1))
        fixed = jax.lax.stop_gradient(nodes)
        noise_key, inner_keys = keys(key, 2 * setting.num_samples)
        uniform = jax.random.uniform(noise_key, (setting.num_samples, *nodes.shape))
        taken, leaf = walk(turns, fixed, jnp.stack([uniform, 1.0 - uniform], axis=1))
        back = jnp.broadcast_to(jnp.argsort(order, axis=-1), leaf.shape)
        z = jnp.take_along_axis(leaf, back, axis=-1)
        value, signal, aux = evaluate_groups(integrand, q, z, inner_keys, setting.objective)
        reached = leaf @ jnp.asarray(turns != 0, leaf.dtype)
        multipliers = credit(jnp.broadcast_to(fixed, taken.shape), taken, reached)
        gradient = jnp.tensordot(signal, multipliers, axes=2)
        return from_gradient(value, nodes, gradient), no_aux(aux)

    requires = Requirements(
        needs=(CategoricalSites, Density),
        evaluations="2K",
        paper="Dong et al. 2021",
        advice="Write disarm() for Bernoulli vectors, score() or local_expectation() for either.",
    )
    return rule(name, requires, surrogate)


def node_logits(turns: np.ndarray, logits: Array) -> Array:
    """[..., C-1] log odds of turning right at each node, from the leaves' logits [..., C]."""
    spread = logits[..., :, None] + jnp.zeros(turns.shape, logits.dtype).reshape(
        (1,) * (logits.ndim - 1) + turns.shape
    )
    right = jnp.broadcast_to(turns == 1, spread.shape)
    left = jnp.broadcast_to(turns == -1, spread.shape)
    return jax.nn.logsumexp(spread, axis=-2, where=right) - jax.nn.logsumexp(
        spread, axis=-2, where=left
    )


def walk(turns: np.ndarray, nodes: Array, uniform: Array) -> tuple[Array, Array]:
    """Turns [K, 2, ..., C-1] in {0, 1} at every node, reached or not, and the leaf they lead to,
    one-hot [K, 2, ..., C].
    """
    nodes = jnp.broadcast_to(nodes, uniform.shape)
    # So that negative coupling keeps the rare turns apart
    rare = uniform < jax.nn.sigmoid(-jnp.abs(nodes))
    taken = jnp.where(nodes > 0.0, ~rare, rare)
    against = jnp.where(taken, 1.0, -1.0).astype(nodes.dtype)[..., None, :] * jnp.asarray(
        turns, nodes.dtype
    ).reshape((1,) * (taken.ndim - 1) + turns.shape)
    leaf = ~jnp.any(against < 0.0, axis=-1)
    return taken.astype(nodes.dtype), leaf.astype(nodes.dtype)


def _shared_node_credit(nodes: Array, taken: Array, reached: Array) -> Array:
    """The score of a node's turn, where both draws reached it in DisARM's form: the noise
    integrated out given the turns.
    """
    both = reached[:, :1] * reached[:, 1:] > 0.0
    scale = jnp.where(both, jax.nn.sigmoid(jnp.abs(nodes)), 1.0)
    return scale * reached * (taken - jax.nn.sigmoid(nodes))


def _importance_credit(nodes: Array, taken: Array, reached: Array) -> Array:
    """The score of every turn, times (1 - p_n) prod_{i < n} (1 - p_i)^2 / (1 - 2 p_i), the pair
    parting at node n.
    """
    prob, stay = jax.nn.sigmoid(nodes), jax.nn.sigmoid(-nodes)
    both = reached[:, :1] * reached[:, 1:]
    # [K, 1, ..., C-1]; at most one node per site
    parted = both * jnp.abs(taken[:, :1] - taken[:, 1:])
    passed = both * (1.0 - taken[:, :1]) * (1.0 - taken[:, 1:])
    # At a tie of the last two classes 1 - 2p = 0, but no pair passes there and parts later.
    ratio = jnp.log(jnp.square(stay) / jnp.maximum(stay - prob, jnp.finfo(nodes.dtype).tiny))
    log_weight = jnp.sum(passed * ratio + parted * jnp.log(stay), axis=-1, keepdims=True)
    apart = jnp.sum(parted, axis=-1, keepdims=True) > 0.0
    weight = jnp.where(apart, jnp.exp(jnp.where(apart, log_weight, 0.0)), 0.0)
    return weight * reached * (taken - prob)
