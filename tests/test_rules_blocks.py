"""Credit per block by named terms, from models that return a dict of them: unbiased, sparing, and
harmless to all else.
"""

import exact
import jax
import jax.numpy as jnp
import problems
import pytest
from checks import assert_close, assert_unbiased, compiled

import vijax as vj
from vijax import baselines, densities, diagnostics, families, guides, models, rules
from vijax.objectives import elbo

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = families.product(a=families.bernoulli(2), b=families.bernoulli(1))
DEPENDS = {"a": ("prior_a", "likelihood"), "b": ("prior_b", "likelihood")}
DRAWS = 4000


def bits(z, logits):
    return jnp.sum(densities.bernoulli(z, logits))


def total(named):
    """The same log-density as one number."""
    return lambda *given: sum(named(*given).values())


def init(key):
    return {
        "a": jnp.array([0.6, -3.0]),
        "b": jnp.array([2.5]),
        "slope": jnp.array([1.0, -0.7, 0.4]),
    }


def prior(theta, z):
    return {"prior_a": bits(z["a"], theta["a"]), "prior_b": bits(z["b"], theta["b"])}


def likelihood(theta, z, x):
    return {
        "likelihood": densities.normal(x, theta["slope"] @ jnp.concatenate([z["a"], z["b"]]), 0.3)
    }


def local(named=lambda f: f):
    """A latent per datum, from an encoder of blocks."""

    def log_joint(theta, z, x):
        return prior(theta, z) | likelihood(theta, z, x)

    net = problems.linear_encoder(3, 1)
    encoder = (
        net[0],
        lambda phi, x: {
            k: {"logits": v} for k, v in zip("ab", jnp.split(net[1](phi, x), [2]), strict=True)
        },
    )
    return problems.Problem(
        "local",
        models.latent_model(init, named(log_joint)),
        guides.amortized(FAMILY, encoder),
        X,
        0,
    )


def shared(named=lambda f: f):
    """One latent of all data."""
    return problems.Problem(
        "shared",
        models.bayes_model(named(prior), named(likelihood), init=init),
        guides.shared(FAMILY),
        X,
        0,
    )


X = problems.NORMAL_X
CREDIT = rules.score_per_block(rules.by_terms(DEPENDS))


def draws(problem, rule, params, num_samples=2):
    estimator = vj.estimator(
        problem.model, problem.guide, rules=rule, num_samples=num_samples, num_data=problems.N
    )
    batch = problems.batch_of(problem)
    state = estimator.init(jax.random.key(0), params)
    one = jax.vmap(lambda key: estimator.estimate(key, params, state, batch)[0])
    return compiled(one, jax.random.split(jax.random.key(1), DRAWS))


@pytest.mark.parametrize("make", [local, shared])
def test_credit_by_terms_is_unbiased_through_the_estimator_and_below_the_score(make):
    plain = make(total)
    params = vj.Params(
        init(None),
        problems.generic(jax.eval_shape(plain.guide.init, jax.random.key(0))),
        {"z": (), "w": ()},
    )
    answer = compiled(jax.grad(exact.exact_loss(plain, elbo, 2)), params, problems.batch_of(plain))
    seen = draws(make(), CREDIT, params).grads
    assert_unbiased((seen.theta, seen.phi), (answer.theta, answer.phi))

    # Block a does not know of the likelihood: refused; planted behind the check, biased
    short = {"a": ("prior_a",), "b": DEPENDS["b"]}
    with pytest.raises(ValueError, match=r"\['likelihood'\] depend on block 'a'"):
        draws(make(), rules.score_per_block(rules.by_terms(short)), params)
    credit = rules.by_terms(DEPENDS)

    def without(block, integrand, known):
        lost = known.terms["likelihood"] if block == "a" else 0.0
        return credit.signal(block, integrand, known) - lost

    faulty = rules.score_per_block(credit._replace(signal=without))
    fault = draws(make(), faulty, params).grads
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(fault.phi, answer.phi)

    for rule in (rules.score(), rules.score(baselines.none())):
        score = draws(plain, rule, params).grads
        ours, theirs = (
            sum(float(leaf.var(axis=0).sum()) for leaf in jax.tree.leaves(g.phi))
            for g in (seen, score)
        )
        assert ours < 0.8 * theirs


def test_models_with_terms_serve_everything_else_unchanged():
    """Any other rule, a rule per block, the evidence: the same numbers as from the sum."""
    key, plain, named = jax.random.key(3), local(total), local()
    batch = problems.batch_of(plain)
    for rule in (rules.score(), rules.enumerated(), {"a": rules.disarm(), "b": rules.muprop()}):
        results = []
        for problem in (plain, named):
            estimator = vj.estimator(
                problem.model, problem.guide, rules=rule, num_samples=2, num_data=problems.N
            )
            params = estimator.init_params(key)
            results.append(
                jax.jit(estimator.estimate)(key, params, estimator.init(key, params), batch)
            )
        assert_close(*results, tolerance=1e-12)
    evidence = [
        diagnostics.log_evidence(key, p.model, p.guide, params, batch, num_samples=10)
        for p in (plain, named)
    ]
    # Of ten weights there is no k-hat
    assert_close(*(seen._replace(k_hat=(), reliable=()) for seen in evidence), tolerance=1e-12)


def test_what_cannot_be_credited_is_refused():
    def run(problem, rule=CREDIT):
        estimator = vj.estimator(problem.model, problem.guide, rules=rule, num_data=problems.N)
        params = estimator.init_params(jax.random.key(0))
        estimator.estimate(
            jax.random.key(0),
            params,
            estimator.init(jax.random.key(0), params),
            problems.batch_of(problem),
        )

    with pytest.raises(
        ValueError, match=r"are not among those of the log-joint, \[\]. Return a dict"
    ):
        run(local(total))
    vector = local()
    vector = vector._replace(
        model=models.latent_model(init, lambda theta, z, x: {"prior_a": z["a"]})
    )
    with pytest.raises(ValueError, match=r"term 'prior_a' of log_joint returned shape \(2,\)"):
        run(vector)
