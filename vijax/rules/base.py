"""What all rules share: making one, drawing K samples, evaluating the integrand, carrying a given
gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vijax.families import lam_like, log_probs, transports
from vijax.noise import IID, Noise
from vijax.objectives import as_objective
from vijax.rules.legality import check_noise, check_requirements
from vijax.shapes import one_number, same_shapes
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
    Surrogate,
)


def rule(
    name: str,
    requires: Requirements,
    surrogate: Surrogate,
    *,
    check: Callable[[Family, Objective, Any, Family | None], None] | None = None,
    noise: Noise = IID,
    per_block: bool = False,
    around: Rule | None = None,
    init: Callable[[Key], PyTree] = lambda key: (),
    init_state: Callable[[], PyTree] = lambda: (),
    update: Callable[[PyTree, PyTree], PyTree] = lambda state, stats: state,
) -> Rule:
    """A `Rule` from its surrogate, which is checked for legality wherever it is traced, bare use
    included.

    Args:
      surrogate: (key, q, integrand, setting) -> (scalar, Aux); `draw`, `evaluate` and `no_aux` are
        most of it.
      check: (family, objective, num_samples, prior family or None), what it needs beyond `requires`
        and `noise`.
      noise: the plug that the surrogate draws with.
      per_block: may num_samples be a mapping of the latent's blocks? `check` then looks after it.
      around: a rule that this one stands around: what that refuses, it refuses in its own words.
    """

    def legal(family: Family, given: Any, num_samples: Any, prior: Family | None) -> None:
        objective = as_objective(given, num_samples)
        if around is not None:
            around.check(family, objective, num_samples, prior)
        if not (per_block and isinstance(num_samples, Mapping)):
            check_requirements(name, requires, family, objective, num_samples)
            check_noise(name, requires, noise, family, objective, num_samples)
        if check is not None:
            check(family, objective, num_samples, prior)

    def checked(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        prior = None if setting.prior is None else q.family
        legal(q.family, setting.objective, setting.num_samples, prior)
        same_shapes(q.lam, lam_like(q.family), f"lam of {q.family.name}")
        _check_given(name, setting, init, init_state)
        return surrogate(key, q, integrand, setting)

    return Rule(
        name=name,
        requires=requires,
        surrogate=checked,
        check=legal,
        init=init,
        init_state=init_state,
        update=update,
    )


def _check_given(name: str, setting: Setting, init: Callable, init_state: Callable) -> None:
    """Refuse a bare call that leaves out what the rule learns or remembers."""

    def left_out(given: PyTree, make: Callable, *args: Any) -> bool:
        return not jax.tree.leaves(given) and bool(jax.tree.leaves(jax.eval_shape(make, *args)))

    if left_out(setting.control, init, jax.random.key(0)) or left_out(setting.state, init_state):
        raise ValueError(
            f"{name} learns or remembers something: pass control=rule.init(key), "
            "state=rule.init_state(), and after each step state = rule.update(state, aux.stats)."
        )


def keys(key: Key, num_samples: int) -> tuple[Key, Key]:
    """(the key of the samples' noise, [K] keys for the integrand). Every sampling rule splits its
    key by this, so one key means one set of samples for all.
    """
    noise_key, inner_key = jax.random.split(key)
    return noise_key, jax.random.split(inner_key, num_samples)


def spare_key(key: Key) -> Key:
    """A key independent of everything that `keys` and `draw` make of this one."""
    return jax.random.fold_in(key, 2)


def draw(key: Key, q: Q, num_samples: int, noise: Noise = IID) -> Sample:
    """K samples, leaves [K, ...]. `log_q` is the total one: z and q's parameters both carry
    derivatives.
    """
    noise_key, inner_keys = keys(key, num_samples)
    z, log_q = transports(q.family, q.lam, noise.draw(noise_key, q.family, num_samples))
    return Sample(z, log_q, inner_keys)


def stopped(q: Q) -> Q:
    """The same distribution, no derivative flowing to its parameters."""
    return Q(q.family, jax.lax.stop_gradient(q.lam))


def zero_valued(tree: PyTree) -> PyTree:
    """Zero, with the tree's derivatives: a - stop_gradient(a)."""
    return jax.tree.map(lambda leaf: leaf - jax.lax.stop_gradient(leaf), tree)


def evaluate(integrand: Integrand, samples: Sample) -> tuple[Array, PyTree]:
    """The integrand at K samples: (values [K], its aux with leaves [K, ...])."""

    def pair(sample: Sample) -> tuple[Scalar, PyTree]:
        value = integrand(sample)
        value, aux = value if isinstance(value, tuple) else (value, ())
        return one_number(value, "the integrand (log_joint - log_q)"), aux

    return jax.vmap(pair)(samples)


def evaluate_at(integrand: Integrand, q: Q, z: PyTree, key: Key) -> tuple[Array, PyTree]:
    """The integrand at given z, leaves [M, ...], with q's parameters stopped: for rules given as
    formulas in its values.
    """
    log_q = log_probs(q.family, stopped(q).lam, z)
    return evaluate(integrand, Sample(z, log_q, jax.random.split(key, log_q.shape[0])))


def live_weights(integrand: Integrand, samples: Sample) -> tuple[Array, Array, PyTree]:
    """(log_w [K], its derivative in log_q [K], aux) at samples whose log_q may be live in lam."""

    def weights(log_q: Array) -> tuple[Array, PyTree]:
        return evaluate(integrand, samples._replace(log_q=log_q))

    log_w, slope, aux = jax.jvp(
        weights, (samples.log_q,), (jnp.ones_like(samples.log_q),), has_aux=True
    )
    return log_w, jax.lax.stop_gradient(slope), aux


def minus_direct_term(slope: Array, log_q: Array) -> Scalar:
    """Zero, with the derivative -sum_k slope_k dlog q_k / K, which has mean zero at draws of q.

    Added to a surrogate whose log_w is live in log q, it cancels the direct dependence of a linear
    objective on q's parameters exactly, sample by sample, and leaves any other
    -sum_k (R_k - 1/K) dlog q_k, the part that it needs.
    """
    return -jnp.mean(slope * zero_valued(log_q))


def mean_aux(aux: PyTree) -> PyTree:
    """Average the integrand's aux over its leading axis of K samples; no derivative flows through
    it.
    """
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(jnp.mean(leaf, axis=0)), aux)


def no_aux(samples_aux: PyTree) -> Aux:
    """Aux of a rule without statistics of its own."""
    return Aux((), mean_aux(samples_aux))


def from_gradient(value: Scalar, wrt: PyTree, gradient: PyTree) -> Scalar:
    """The scalar with this value and, with respect to `wrt`, exactly this gradient added: for rules
    given as formulas.
    """
    terms = jax.tree.map(
        lambda moved, g: jnp.sum(jax.lax.stop_gradient(g) * moved), zero_valued(wrt), gradient
    )
    return value + sum(jax.tree.leaves(terms))


def learned_gradient(
    value: Scalar, wrt: PyTree, control: PyTree, gradient: Callable[[PyTree], PyTree]
) -> Scalar:
    """`value` with the gradient estimator `gradient(control)` in `wrt` and, in `control`, minus the
    gradient of its variance: as `value` goes up, variance goes down.

    E[g] does not depend on the control, so the gradient of |g|^2 is an unbiased gradient of the
    variance's trace (Grathwohl et al. 2018, eq. 5). It is written out here: differentiating a
    surrogate with stopped weights has another derivative. `gradient` must depend on `control`
    explicitly.
    """

    def squared(control: PyTree) -> tuple[Scalar, PyTree]:
        g = gradient(control)
        total = sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(g)), jnp.zeros(()))
        return total.astype(value.dtype), g

    slope, g = jax.grad(squared, has_aux=True)(jax.lax.stop_gradient(control))
    return from_gradient(from_gradient(value, wrt, g), control, jax.tree.map(jnp.negative, slope))
