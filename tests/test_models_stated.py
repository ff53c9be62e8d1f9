"""What a model states once and checks: priors, data, the order of arguments, what a log-density
returns.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import compiled
from model_fixtures import MODELS
from scipy import stats

import vijax as vj
from vijax import densities, families, guides, models, rules

NORMAL = families.diag_normal(2)
WIDE = models.isotropic_normal_prior(NORMAL, scale=3.0)
X = jnp.array([0.3, -1.2])


def log_lik(theta, z, x):
    return jnp.sum(densities.normal(x, z, 0.0))


def standard_joint(theta, z, x):
    return jnp.sum(densities.standard_normal(z)) + log_lik(theta, z, x)


def nothing(key):
    return ()


CONTRADICTING = {
    "a joint with a prior": lambda: models.latent_model(nothing, standard_joint, prior=WIDE),
    "a joint with a likelihood": lambda: models.latent_model(
        nothing, standard_joint, log_lik=log_lik, prior=WIDE
    ),
    "a likelihood alone": lambda: models.latent_model(nothing, log_lik=log_lik),
    "nothing": lambda: models.latent_model(nothing),
    "a local joint with a prior": lambda: models.hierarchical_model(
        WIDE, lambda theta, w, z, x: log_lik(theta, z, x), prior_z=WIDE
    ),
}


@pytest.mark.parametrize("name", CONTRADICTING)
def test_a_prior_is_stated_once(name):
    """A joint with a prior of scale 1 beside a stated one of scale 3 was accepted."""
    with pytest.raises(ValueError, match=r"log_lik=\.\.\., prior(_z)?=\.\.\.\).*made of both"):
        CONTRADICTING[name]()


def test_the_log_joint_is_made_of_the_stated_prior():
    z, w = jnp.array([0.5, 2.0]), jnp.array([-1.0, 0.7])
    lik, wide = stats.norm.logpdf(X, z).sum(), stats.norm.logpdf(z, 0.0, 3.0).sum()
    local = models.latent_model(nothing, log_lik=log_lik, prior=WIDE)
    np.testing.assert_allclose(local.log_local((), None, z, X), wide + lik, rtol=1e-5)
    whole = models.bayes_model(WIDE, log_lik)
    np.testing.assert_allclose(whole.log_prior((), z), wide, rtol=1e-5)
    assert set(whole.priors) == {"w"} and set(local.priors) == {"z"}
    around = vj.Prior(NORMAL, lambda theta, w: {"loc": w, "log_scale": jnp.zeros(2)})
    both = models.hierarchical_model(
        WIDE, log_lik=lambda theta, w, z, x: {"data": log_lik(theta, z, x)}, prior_z=around
    )
    terms = both.log_local((), w, z, X)
    assert set(terms) == {"prior", "data"} and set(both.priors) == {"w", "z"}
    np.testing.assert_allclose(terms["prior"], stats.norm.logpdf(z, w).sum(), rtol=1e-5)


def bounds(seed, model, rule):
    """[50] estimates of the bound at q of mean about 0 and scale 1."""
    guide = guides.per_datapoint(NORMAL, 2)
    batch = vj.Batch(jnp.stack([X, 2.0 * X]), jnp.arange(2))
    est = vj.estimator(model, guide, rules=rule, num_samples=100, num_data=2)
    params = est.init_params(jax.random.key(0))
    state = est.init(jax.random.key(0), params)
    keys = jax.random.split(jax.random.key(seed), 50)
    found = compiled(jax.vmap(lambda key: est.estimate(key, params, state, batch)[0].loss), keys)
    return -np.asarray(found, np.float64)


def test_the_bound_in_closed_form_is_that_of_the_samples():
    """Of the one model that is stated; a planted other prior is seen."""
    model = models.latent_model(nothing, log_lik=log_lik, prior=WIDE)
    other = models.latent_model(nothing, standard_joint)
    closed = bounds(2, model, rules.closed_form_kl(rules.pathwise()))

    def z_score(model):
        difference = bounds(1, model, rules.pathwise()) - closed
        return abs(difference.mean()) / (difference.std(ddof=1) / 50**0.5)

    assert z_score(model) < 5.0 < z_score(other)


RETURNED = {
    "a tuple": (jnp.zeros(()), {}),
    "a list": [jnp.zeros(()), jnp.zeros(())],
    "nothing": None,
    "a word": "0.0",
    "a term that is none": {"prior": None},
}


@pytest.mark.parametrize("name", RETURNED)
def test_a_log_density_that_is_no_number_is_refused(name):
    model = models.latent_model(nothing, lambda theta, z, x: RETURNED[name])
    est = vj.estimator(model, guides.per_datapoint(NORMAL, 2), rules=rules.pathwise(), num_data=2)
    params = est.init_params(jax.random.key(0))
    batch = vj.Batch(jnp.zeros((2, 2)), jnp.arange(2))
    with pytest.raises(ValueError, match=r"log_joint returned a (tuple|list|NoneType|str) .*dict"):
        jax.eval_shape(lambda key: est.estimate(key, params, {"z": ()}, batch), jax.random.key(1))


FEATURES = np.ones((3, 3))
BITS = models.vae((nothing, lambda theta, z: jnp.zeros(4)), 2, models.bernoulli_pixels())
MEANINGLESS = {
    "signs": (MODELS["logistic_regression"].model, [-1.0, 1.0, 1.0], r"labels.*\(label \+ 1\) / 2"),
    "classes from 1": (MODELS["logistic_regression"].model, [1.0, 2.0, 1.0], "labels must be 0 or"),
    "soft labels": (MODELS["logistic_regression"].model, [0.5, 1.0, 1.0], "labels must be 0 or 1"),
    "grey values": (BITS, [0.0, 255.0, 3.0], "go from 0 to 255.*x / 255"),
    "centred pixels": (BITS, [-0.5, 0.5, 0.1], "go from -0.5"),
    "no number": (BITS, [np.nan, 0.5, 0.1], "go from nan"),
    "grey units": (MODELS["sigmoid_belief_net"].model, [0.0, 16.0, 3.0], "pixels.*0 to 16"),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_data_that_the_model_has_no_density_for_are_refused(name):
    """By `Model.check` of concrete data, numpy or not; the fitting loop calls it."""
    model, values, message = MEANINGLESS[name]
    for array in (np.array(values), jnp.array(values)):
        x = {"features": FEATURES, "label": array} if "label" in message else array
        with pytest.raises(ValueError, match=message):
            model.check(x)


def test_data_with_a_meaning_pass():
    MODELS["logistic_regression"].model.check({"features": FEATURES, "label": np.array([0, 1, 1])})
    MODELS["logistic_regression"].model.check({"features": FEATURES, "label": np.array([True])})
    BITS.check(np.array([0.0, 0.3, 1.0]))
    BITS.check(jnp.zeros(4, jnp.uint8))
    assert MODELS["linear_regression"].model.check is None


def test_a_likelihood_takes_the_value_first():
    bits, logits = jnp.array([0.0, 1.0, 1.0]), jnp.array([2.0, -3.0, 0.5])
    pixels = models.bernoulli_pixels()
    np.testing.assert_allclose(
        pixels.log_prob(bits, logits), jnp.sum(densities.bernoulli(bits, logits)), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"log_prob\(x, output\), whose x must be 0 or 1"):
        pixels.log_prob(logits, bits)
    with pytest.raises(ValueError, match=r"log_prob\(x, output\).*\(2,\).*\(3,\)"):
        pixels.log_prob(bits, logits[:2])
    grey = models.normal_pixels(min_scale=0.1)
    with pytest.raises(
        ValueError, match=r"takes x \[P\], then output \[2 P\], but got \(6,\), then"
    ):
        jax.eval_shape(grey.log_prob, jnp.zeros(6), jnp.zeros(3))  # while it is traced
    assert grey.log_prob(jnp.zeros(3), jnp.zeros(6)).shape == ()
    assert "(x, output)" in (models.Likelihood.__doc__ or "")
