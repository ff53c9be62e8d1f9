"""What all rules share: the legality check, drawing K samples, evaluating the integrand, carrying a
given gradient.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from vijax.families import lam_like
from vijax.noise import IID, Noise
from vijax.objectives import is_linear
from vijax.shapes import one_number, same_shapes
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    PyTree,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Surrogate,
)

MAX_SUPPORT = 2**16


def rule(
    name: str,
    requires: Requirements,
    surrogate: Callable[..., tuple[Scalar, Aux]],
    *,
    check: Callable[..., None] | None = None,
    noise: Noise = IID,
    init: Callable[[Key], PyTree] = lambda key: (),
    init_state: Callable[[], PyTree] = lambda: (),
    update: Callable[[PyTree, PyTree], PyTree] = lambda state, stats: state,
) -> Rule:
    """A `Rule` from its surrogate, which is checked for legality wherever it is traced, bare use
    included.

    Args:
      check: (family, objective, num_samples, prior family or None); default: what `requires` and
        `noise` say.
      noise: the plug that the surrogate draws with.
    """

    def default_check(
        family: Family, objective: Objective, num_samples: int, prior: Family | None
    ) -> None:
        check_requirements(name, requires, family, objective, num_samples, prior)
        check_noise(name, requires, noise, family, objective, num_samples)

    legal = default_check if check is None else check

    def checked(
        key,
        family,
        lam,
        integrand,
        *,
        objective,
        num_samples=1,
        control=(),
        state=(),
        x=None,
        prior=None,
    ):
        legal(family, objective, num_samples, None if prior is None else family)
        same_shapes(lam, lam_like(family), f"lam of {family.name}")
        _check_given(name, control, state, init, init_state)
        return surrogate(
            key,
            family,
            lam,
            integrand,
            objective=objective,
            num_samples=num_samples,
            control=control,
            state=state,
            x=x,
            prior=prior,
        )

    return Rule(name, requires, cast(Surrogate, checked), legal, init, init_state, update)


def _check_given(
    name: str, control: PyTree, state: PyTree, init: Callable, init_state: Callable
) -> None:
    """Refuse a bare call that leaves out what the rule learns or remembers."""
    no_control = not jax.tree.leaves(control) and jax.tree.leaves(
        jax.eval_shape(init, jax.random.key(0))
    )
    no_state = not jax.tree.leaves(state) and jax.tree.leaves(jax.eval_shape(init_state))
    if no_control or no_state:
        raise ValueError(
            f"{name} learns or remembers something: pass control=rule.init(key), "
            f"state=rule.init_state(), and after each "
            "step state = rule.update(state, aux.stats)."
        )


def check_requirements(
    name: str,
    requires: Requirements,
    family: Family,
    objective: Objective,
    num_samples: int,
    prior: Family | None,
) -> None:
    """Refuse a (rule, family, objective, K) that would be silently wrong: what, why, what to write
    instead.
    """

    def refuse(problem: str) -> None:
        advice = f" {requires.advice}" if requires.advice else ""
        raise ValueError(f"{name} on {family.name}: {problem}{advice}")

    if not isinstance(num_samples, int) or num_samples < 1:
        refuse(f"num_samples={num_samples!r} must be an int of at least 1.")
    given = jax.ShapeDtypeStruct((num_samples,), jnp.result_type(float))
    shape = jax.eval_shape(objective, given).shape  # some objectives refuse small K themselves
    if shape != ():
        refuse(
            f"the objective returns shape {shape} for log_w [{num_samples}]; it must return one "
            f"number."
        )
    if not family.fixed_support:
        refuse(
            "its support moves with its parameters (fixed_support=False), so the derivative of an "
            "expectation has a boundary "
            "term that no rule here carries. Use a family on a fixed support and transform inside "
            "the log-joint."
        )
    if requires.reparameterized and not all(jax.tree.leaves(family.reparameterized)):
        blocks = "" if family.blocks is None else f" in blocks {dict(family.reparameterized)}"
        refuse(
            f"it has no differentiable sampler (reparameterized=False{blocks}), so the path from "
            f"q's parameters through z "
            "would silently carry a zero gradient."
        )
    either = requires.bernoulli and requires.categorical
    if either and family.bernoulli_logits is None and family.categorical_logits is None:
        refuse(
            "it is no vector of Bernoulli or one-hot categorical variables with logits, for which "
            "this rule's formula holds."
        )
    if requires.bernoulli and not either and family.bernoulli_logits is None:
        refuse(
            "it is not a vector of independent Bernoulli variables with logits, for which this "
            "rule's formula holds."
        )
    if requires.categorical and not either and family.categorical_logits is None:
        refuse(
            "it is not a vector of one-hot categorical variables with logits, for which this "
            "rule's formula holds."
        )
    if requires.independent_blocks and (not family.blocks or family.ordered):
        refuse(
            "it is no product of independent named blocks, one of which could be credited without "
            "the others."
        )
    if requires.normal and family.normal_moments is None:
        refuse(
            "it is not normal with known mean and covariance, over which this rule integrates a "
            "quadratic function."
        )
    if requires.gamma and family.gamma_parameters is None:
        refuse(
            "it is not a vector of independent gamma variables, for which this rule's "
            "transformation is made."
        )
    if requires.weak_derivative and family.weak_derivative is None:
        refuse("no decomposition of its derivative into a difference of two measures is known.")
    if requires.finite_support and (
        family.support_size is None or family.support_size > MAX_SUPPORT
    ):
        refuse(
            f"its support has {family.support_size or 'infinitely many'} points; at most "
            f"{MAX_SUPPORT} can be summed."
        )
    if requires.linear_objective and not is_linear(objective):
        refuse(
            "the objective is not linear in the log-weights, so this rule would estimate the "
            "gradient of another bound."
        )
    if requires.nonlinear_objective and is_linear(objective):
        refuse(
            "the objective is linear in the log-weights, where this rule has nothing to estimate."
        )
    if num_samples < requires.min_samples:
        refuse(f"num_samples={num_samples}, but it needs at least {requires.min_samples}.")
    if requires.entropy and family.entropy is None:
        refuse("the family has no closed-form entropy.")
    if requires.kl and family.kl is None:
        refuse("the family has no closed-form KL divergence.")
    if requires.kl and prior is None:
        refuse(
            "no prior is stated as a family, so KL(q || prior) is unknown. Give the model one, as "
            "in latent_model(..., "
            "prior=models.isotropic_normal_prior(family)), or with the rule used bare prior=lam "
            "of the prior."
        )
    if requires.kl and prior is not None and prior.name != family.name:
        refuse(
            f"the prior is {prior.name}, another family, so KL(q || prior) has no closed form here."
        )


def check_noise(
    name: str,
    requires: Requirements,
    noise: Noise,
    family: Family,
    objective: Objective,
    num_samples: int,
) -> None:
    """Refuse noise that the family cannot take, or that depends between samples where the rule's
    derivation forbids it.
    """
    noise.check(family, num_samples)
    if not (noise.independent or requires.samplewise or is_linear(objective)):
        raise ValueError(
            f"{name}: with a non-linear objective its derivation needs independent samples, which "
            f"{noise.name} does not "
            "draw. Write pathwise() for it, noise=iid() or objective=elbo."
        )


def draw(key: Key, family: Family, lam: PyTree, num_samples: int, noise: Noise = IID) -> Sample:
    """K samples, leaves [K, ...]. Every sampling rule draws by this, so one key means one set of
    samples for all.

    `log_q` is the total one: z and q's parameters both carry derivatives.
    """
    noise_key, inner_key = jax.random.split(key)
    z, log_q = jax.vmap(family.transport, in_axes=(None, 0))(
        lam, noise.draw(noise_key, family, num_samples)
    )
    return Sample(z, log_q, jax.random.split(inner_key, num_samples))


def evaluate(integrand: Integrand, samples: Sample) -> tuple[Array, PyTree]:
    """The integrand at K samples: (values [K], its aux with leaves [K, ...])."""

    def pair(sample: Sample) -> tuple[Scalar, PyTree]:
        value = integrand(sample)
        value, aux = value if isinstance(value, tuple) else (value, ())
        return one_number(value, "the integrand (log_joint - log_q)"), aux

    return jax.vmap(pair)(samples)


def evaluate_at(
    integrand: Integrand, family: Family, lam: PyTree, z: PyTree, key: Key
) -> tuple[Array, PyTree]:
    """The integrand at given z, leaves [M, ...], with q's parameters stopped: for rules given as
    formulas in its values.
    """
    log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(jax.lax.stop_gradient(lam), z)
    return evaluate(integrand, Sample(z, log_q, jax.random.split(key, log_q.shape[0])))


def mean_aux(aux: PyTree) -> PyTree:
    """Average the integrand's aux over its leading axis of K samples; no derivative flows through
    it.
    """
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(jnp.mean(leaf, axis=0)), aux)


def from_gradient(value: Scalar, wrt: PyTree, gradient: PyTree) -> Scalar:
    """The scalar with this value and, with respect to `wrt`, exactly this gradient added: for rules
    given as formulas.
    """
    terms = jax.tree.map(
        lambda leaf, g: jnp.sum(jax.lax.stop_gradient(g) * (leaf - jax.lax.stop_gradient(leaf))),
        wrt,
        gradient,
    )
    return value + sum(jax.tree.leaves(terms))


def reduce_variance(value: Scalar, control: PyTree, gradient: Callable[[PyTree], PyTree]) -> Scalar:
    """`value`, whose derivative in `control` is minus that of |gradient(control)|^2: as `value`
    goes up, variance goes down.

    The mean of an unbiased gradient does not depend on its control variate, so the expected square
    and the variance have one derivative. `gradient` must depend on `control` explicitly: a
    surrogate with stopped weights has another derivative.
    """

    def square(control: PyTree) -> Scalar:
        return sum(
            (jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient(control))),
            jnp.zeros((), value.dtype),
        )

    return from_gradient(
        value, control, jax.tree.map(jnp.negative, jax.grad(square)(jax.lax.stop_gradient(control)))
    )


def no_aux(samples_aux: PyTree) -> Aux:
    """Aux of a rule without statistics of its own."""
    return Aux((), mean_aux(samples_aux))
