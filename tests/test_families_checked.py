"""What is given to a family: shapes of its own, values inside its support, latents of any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, compiled

import vijax as vj
from vijax import densities, families, models, rules, supports
from vijax.families import Entropy, Kl, WeakDerivative, lam_like, need

KEY = jax.random.key(0)
NORMAL = families.diag_normal(2)
LAM = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}
ROWS = jax.tree.map(lambda leaf: jnp.tile(leaf, (5, 1)), LAM)
Z = jnp.zeros(2)

BATCHES = {
    "lam of log_prob": lambda: NORMAL.log_prob(ROWS, Z),
    "z of log_prob": lambda: NORMAL.log_prob(LAM, jnp.zeros((5, 2))),
    "lam of transport": lambda: NORMAL.transport(ROWS, Z),
    "noise of transport": lambda: families.exponential(1).transport(
        {"log_rate": jnp.zeros(1)}, jnp.ones(5)
    ),
    "lam of KL": lambda: need(NORMAL, Kl).value(ROWS, ROWS),
    "second lam of KL": lambda: need(NORMAL, Kl).value(LAM, ROWS),
    "lam of the entropy": lambda: need(NORMAL, Entropy).value(ROWS),
    "a number for a vector": lambda: need(NORMAL, Entropy).value({"loc": 0.0, "log_scale": 0.0}),
    "a block": lambda: families.product(a=NORMAL).log_prob({"a": ROWS}, {"a": Z}),
    "a missing leaf": lambda: NORMAL.log_prob({"loc": Z}, Z),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_axis_is_refused_and_not_summed(name):
    with pytest.raises(
        ValueError, match=r"(diag_normal\(2\)|exponential\(1\)).* is needed.* vmap them"
    ):
        jax.eval_shape(BATCHES[name])  # while it is traced


def lam_of(family):
    return family.init(KEY)


OUTSIDE = {
    "classes for one-hot": (families.categorical(3), [0.0, 1.0, 2.0], r"jax.nn.one_hot"),
    "signs for bits": (families.bernoulli(3), [-1.0, 1.0, 1.0], "zeros and ones, not -1 and 1"),
    "below zero": (families.exponential(1), [-1.0], r"positive\(1\), numbers above 0"),
    "half a count": (families.poisson(1), [1.5], "whole numbers"),
    "above one": (families.beta(1), [1.5], "between its two ends"),
    "off the simplex": (families.dirichlet(2), [0.5, 0.8], "sum 1"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_value_outside_the_support_is_refused(name):
    family, z, message = OUTSIDE[name]
    with pytest.raises(ValueError, match=message):
        family.log_prob(lam_of(family), jnp.array(z))


def test_relaxed_bits_and_classes_are_inside():
    for family, z in (
        (families.bernoulli(2), [0.3, 1.0]),
        (families.categorical(2), [0.3, 0.7]),
        (families.categorical(2), [1, 0]),
    ):
        assert jnp.isfinite(family.log_prob(lam_of(family), jnp.array(z)))


@pytest.mark.parametrize("family", [families.exponential(2), families.poisson(2)])
def test_below_zero_the_density_is_zero_and_its_gradient_finite(family):
    """Traced, where nothing can be refused."""
    value, slope = jax.jit(jax.value_and_grad(family.log_prob))(
        lam_of(family), jnp.array([1.0, -1])
    )
    assert value == -jnp.inf and np.all(np.isfinite(slope["log_rate"]))


@pytest.mark.parametrize("covariance", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.2, 1.0]]])
def test_what_is_no_covariance_is_refused(covariance):
    with pytest.raises(ValueError, match="not symmetric and positive definite"):
        families.from_covariance(Z, jnp.array(covariance))
    inside = jax.jit(families.from_covariance)(Z, jnp.array(covariance))  # traced: NaN, or its half
    assert inside["lower"].shape == (2, 2)


def test_an_isotropic_normal_prior_is_a_member_of_a_normal_family():
    for family in (families.student_t(2), families.gamma(2), families.product(a=NORMAL)):
        with pytest.raises(ValueError, match="is no diag_normal or full_normal.*vijax.Prior"):
            models.isotropic_normal_prior(family)
    for family in (families.diag_normal((3, 2)), families.diag_normal(()), families.full_normal(2)):
        prior, z = models.isotropic_normal_prior(family, scale=0.7), families.z_like(family)
        z = jnp.arange(1.0, 1.0 + z.size).reshape(z.shape)
        stated = prior.family.log_prob(prior.locate(()), z)
        assert prior.log_prob is not None
        np.testing.assert_allclose(prior.log_prob((), z), stated, rtol=1e-6)


MAKERS = ("diag_normal", "bernoulli", "gamma", "exponential", "poisson", "beta", "student_t")


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, (3, 2)) for name in (*MAKERS, "von_mises")), ("diag_normal", ())]
)
def test_a_latent_of_any_shape_is_the_vector_reshaped(name, shape):
    """z, log q, its gradients, KL and pairs, with the same key."""
    make, size = getattr(families, name), int(np.prod(shape))
    shaped, flat = make(shape), make(size)
    assert shaped.name == f"{name}({shape})" and make((size,)).name == f"{name}({size})"
    lam = jax.tree.map(lambda leaf: 0.3 + 0.1 * jnp.arange(leaf.size), lam_like(flat))
    weights = jnp.sin(1.0 + jnp.arange(size))

    def everything(family, lam):
        noise = jax.tree.map(lambda e: e[0], family.noise(KEY, 1))

        def bound(lam):
            z, log_q = family.transport(lam, noise)
            return weights @ jnp.sqrt(1.0 + jnp.square(jnp.ravel(z))) - log_q, z

        slope, z = jax.grad(bound, has_aux=True)(lam)
        found = [z, slope, jax.value_and_grad(family.log_prob)(lam, z)]
        if kl := family.traits.get(Kl):
            found.append(kl.value(jax.tree.map(jnp.sin, lam), lam))
        if weak := family.traits.get(WeakDerivative):
            found.append(weak.pairs(KEY, lam, z))
        return found

    there = jax.tree.map(lambda leaf: leaf.reshape(shape), lam)
    seen, vector = compiled(lambda: (everything(shaped, there), everything(flat, lam)))
    again = jax.tree.map(lambda leaf, like: np.reshape(leaf, np.shape(like)), vector, seen)
    assert_close(seen, again, tolerance=1e-5)


def test_a_shape_is_kept_by_guides_and_supports():
    family = families.product(mu=families.diag_normal(()), rows=families.bernoulli((3, 2)))
    assert family.support["rows"] == supports.binary(3, 2)
    assert {name: leaf.shape for name, leaf in families.z_like(family).items()} == {
        "mu": (),
        "rows": (3, 2),
    }
    encoder = (lambda key: jnp.zeros(8), lambda params, x: params + x)
    lam = vj.guides.amortized(family, encoder, x=jnp.zeros(())).at({"z": jnp.arange(8.0)}, 0.0)
    assert jax.tree.map(jnp.shape, lam) == jax.tree.map(jnp.shape, lam_of(family))
    finite = need(families.bernoulli((2, 2)), families.FiniteSupport)
    assert finite.values().shape == (16, 2, 2)


def test_named_latents_may_be_numbers():
    """`w["mu"]`, not `w["mu"][0]`, in a model as written on paper."""

    def log_prior(theta, w):
        return densities.normal(w["mu"], 0.0, 1.0) - w["sigma"]

    def log_lik(theta, w, x):
        return densities.normal(x, w["mu"], jnp.log(w["sigma"]))

    q = families.product(mu=families.diag_normal(()), sigma=families.gamma(()))
    model, guide = models.bayes_model(log_prior, log_lik), vj.guides.shared(q)
    est = vj.estimator(model, guide, rules=rules.pathwise(), num_samples=2, num_data=3)

    def estimate(key):
        params, batch = est.init_params(key), vj.Batch(jnp.arange(3.0), jnp.arange(3))
        return est.estimate(key, params, {"w": ()}, batch)[0]

    assert jax.eval_shape(estimate, KEY).grads.phi["w"]["mu"]["loc"].shape == ()


def test_rules_for_vectors_refuse_other_shapes():
    for rule, family in (
        (rules.disarm(), families.bernoulli((3, 2))),
        (rules.quadratic_control(), families.diag_normal(())),
        (rules.generalized_reparameterization(), families.gamma((3, 2))),
    ):
        with pytest.raises(ValueError, match=r"it is (no|not a|not normal, a) vector"):
            rule.check(family, vj.objectives.elbo, 2, None)


@pytest.mark.parametrize("size", [0, (3, 0), 2.0, [3, 2], "3"])
def test_what_is_no_shape_is_refused(size):
    with pytest.raises(ValueError, match=r"diag_normal\(.*an int of at least 1, or the shape of z"):
        families.diag_normal(size)
    with pytest.raises(ValueError, match=r"families.over\(supports.real\(3, 2\)"):
        families.full_normal((3, 2))  # type: ignore
