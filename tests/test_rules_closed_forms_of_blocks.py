"""Credit per block where something else stands in log q's place, as inside closed-form entropy and
KL: unbiased against the sum over all values.
"""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased, compiled

import vijax as vj
from vijax import families, rules
from vijax.rules.score_per_block import Credit

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = families.product(a=families.bernoulli(2), b=families.categorical(3))
LAM = {"a": {"logits": np.array([0.6, -1.1])}, "b": {"logits": np.array([0.2, -0.7, 0.5])}}
PRIOR = {"a": {"logits": np.array([-0.4, 0.9])}, "b": {"logits": np.array([0.3, 0.8, -0.6])}}
THETA = np.array([0.9, -0.5, 1.3])
DEPENDS = {"a": ("prior_a", "likelihood"), "b": ("prior_b", "likelihood")}
BY_TERMS = rules.by_terms(DEPENDS)
CLOSED = {
    "entropy": (rules.closed_form_entropy, None),
    "kl": (rules.closed_form_kl, PRIOR),
    "neither": (lambda rule: rule, None),
}
DRAWS = 6000


def log_probs(lam, z):
    """Of each block, by hand."""
    on, off = jax.nn.log_sigmoid(lam["a"]["logits"]), jax.nn.log_sigmoid(-lam["a"]["logits"])
    return {
        "a": jnp.sum(z["a"] * on + (1.0 - z["a"]) * off),
        "b": z["b"] @ jax.nn.log_softmax(lam["b"]["logits"]),
    }


def terms(theta, z):
    """A log-joint in named parts; the likelihood is of both blocks."""
    prior, level = log_probs(PRIOR, z), z["b"] @ theta
    likelihood = jnp.sin(3.0 * level + z["a"][0]) + 2.0 * level * z["a"][0] * z["a"][1]
    return {"prior_a": prior["a"], "prior_b": prior["b"], "likelihood": likelihood}


def exact_gradient(slope):
    """Gradient in (theta, lam) of E[log p + slope log q], by the sum over all twelve values."""

    def expected(theta, lam):
        total = 0.0
        for *bits, level in itertools.product((0.0, 1.0), (0.0, 1.0), range(3)):
            z = {"a": jnp.array(bits), "b": jnp.eye(3)[level]}
            log_q = sum(log_probs(lam, z).values())
            total += jnp.exp(log_q) * (sum(terms(theta, z).values()) + slope * log_q)
        return total

    return compiled(jax.grad(expected, argnums=(0, 1)), THETA, LAM)


def draws(rule, *, slope=-1.0, num_samples=2, prior=None):
    """Gradients in (theta, lam), leaves [S, ...]."""

    def value(theta, lam, key):
        def integrand(sample):
            named = terms(theta, sample.z)
            return sum(named.values()) + slope * sample.log_q, named

        given = {"rule": rule, "num_samples": num_samples, "prior": prior}
        return vj.expect(key, FAMILY, lam, integrand, **given)[0]

    one = jax.vmap(jax.grad(value, argnums=(0, 1)), in_axes=(None, None, 0))
    return compiled(one, THETA, LAM, jax.random.split(jax.random.key(0), DRAWS))


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("credit", [BY_TERMS, rules.by_substitution()], ids=lambda c: c.name)
@pytest.mark.parametrize("closed", CLOSED)
def test_closed_forms_around_credit_per_block_are_unbiased(closed, credit, num_samples):
    wrap, prior = CLOSED[closed]
    rule = wrap(rules.score_per_block(credit))
    assert rule.requires.unbiased
    assert_unbiased(draws(rule, num_samples=num_samples, prior=prior), exact_gradient(-1.0))


@pytest.mark.parametrize("slope", [0.0, -0.4])
def test_credit_by_terms_takes_log_q_as_the_integrand_carries_it(slope):
    """A plain expectation, which has none, and a tempered bound."""
    seen = draws(rules.score_per_block(BY_TERMS), slope=slope)
    assert_unbiased(seen, exact_gradient(slope))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(seen, exact_gradient(-1.0))


@pytest.mark.parametrize("closed", CLOSED)
def test_the_check_catches_a_log_q_that_is_not_in_the_integrand(closed):
    """Planted: a block's own log q is taken off its terms whatever stands in its place."""

    def signal(block, integrand, known):
        own = jax.vmap(lambda z: log_probs(known.q.lam, z)[block])(known.samples.z)
        credit = sum((known.terms[name] for name in DEPENDS[block]), -own)
        return 2.0 * (credit - jnp.mean(credit))

    wrap, prior = CLOSED[closed]
    seen = draws(wrap(rules.score_per_block(Credit("planted", signal, "K"))), prior=prior)
    caught = pytest.raises(AssertionError, match="biased")
    with contextlib.nullcontext() if closed == "neither" else caught:
        assert_unbiased(seen, exact_gradient(-1.0))
