"""Log-joints against scipy's densities, priors stated as families, simulation against the evidence,
settings refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_unbiased
from model_fixtures import FACTORS, NORMAL, PCA
from registry import MODELS

from vijax import families, models
from vijax.testing import check_model

pytestmark = pytest.mark.usefixtures("x64")


def simulated(fixture, num_data):
    """(z, x) leaves [num_data, ...] of a model with a local latent."""
    draw = jax.jit(fixture.model.simulate, static_argnums=2)
    latents, x = jax.device_get(draw(jax.random.key(1), fixture.theta, num_data))
    return latents["z"] if "w" in fixture.model.latents else latents, x


@pytest.mark.parametrize("name", MODELS)
def test_log_joint_is_scipys_and_its_prior_a_family(name):
    fixture = MODELS[name]
    model, theta = fixture.model, fixture.theta
    assert set(model.priors) == set(fixture.stated)
    zs, xs = simulated(fixture, 4) if fixture.x is None else (None, None)
    log_local = jax.jit(model.log_local)
    for i in range(4):
        w = None if fixture.w is None else fixture.w[i]
        z, x = jax.tree.map(lambda leaf, i=i: leaf[i], (zs, xs))
        x = x if fixture.x is None else fixture.x
        scipys = {}
        if fixture.log_prior is not None:
            scipys["w"] = fixture.log_prior(w)
            value = jax.tree.map(jnp.asarray, w)
            assert abs(float(model.log_prior(theta, value)) - scipys["w"]) < 1e-10
        if fixture.log_local is not None:
            scipys["z"] = fixture.log_local(w, z)
        assert set(scipys) == set(model.latents)
        joint = scipys.get("z", 0.0) + fixture.log_lik(w, z, x)
        assert abs(float(log_local(theta, w, z, x)) - joint) < 1e-10
        for latent, prior in model.priors.items():
            lam = prior.locate(theta) if latent == "w" else prior.locate(theta, w)
            value = jax.tree.map(jnp.asarray, w if latent == "w" else z)
            assert abs(float(prior.family.log_prob(lam, value)) - scipys[latent]) < 1e-10


@pytest.mark.parametrize(
    "family", [families.diag_normal, families.full_normal], ids=lambda f: f.__name__
)
def test_prior_is_stated_in_the_family_of_the_guide(family):
    model = models.probabilistic_pca(4, 2, prior_family=family)
    prior = model.priors["z"]
    assert prior.family.name == family(2).name
    lam = prior.locate(PCA, None)
    assert float(families.need(prior.family, families.Kl).value(lam, lam)) == 0.0


def test_mixture_of_factor_analyzers_evidence_is_the_oracles():
    model = MODELS["mixture_of_factor_analyzers"].model
    for x in np.random.default_rng(3).normal(size=(3, 3)):
        exact = oracles.factor_mixture_log_evidence(x, **FACTORS)
        assert abs(float(model.log_evidence(FACTORS, jnp.asarray(x))) - exact) < 1e-10


@pytest.mark.parametrize("name", ["gaussian_mixture", "mixture_of_factor_analyzers"])
def test_log_joint_is_affine_in_a_relaxed_assignment(name):
    """What relaxations differentiate: between two assignments the log joint is their straight
    line.
    """
    model, theta = MODELS[name].model, MODELS[name].theta
    z, x = model.simulate(jax.random.key(1), theta, 1)
    corners = jnp.eye(2, theta["logits"].shape[0])

    def at(c):
        latent = c if name == "gaussian_mixture" else {"c": c, "z": z["z"][0]}
        return float(model.log_local(theta, None, latent, x[0]))

    assert (
        abs(at(0.3 * corners[0] + 0.7 * corners[1]) - 0.3 * at(corners[0]) - 0.7 * at(corners[1]))
        < 1e-10
    )


# Where the posterior is of another family than the stated prior, or there is none.
FAMILIES = {
    "linear_regression": {"w": families.full_normal(3)},
    "probabilistic_pca": {"z": families.full_normal(2)},
    "eight_schools": {"w": families.diag_normal(10)},
}


@pytest.mark.parametrize("name", MODELS)
def test_model_keeps_what_it_promises(name):
    """Simulation, stated priors, evidence and posterior against the log-joint."""
    check_model(MODELS[name].model, MODELS[name].theta, families=FAMILIES.get(name))


@pytest.mark.parametrize(
    ("name", "shift"), [("probabilistic_pca", 0.1), ("gaussian_mixture", 0.1), ("vae", 0.3)]
)
def test_data_of_another_theta_are_caught(name, shift):
    model, theta = MODELS[name].model, MODELS[name].theta
    shifted = jax.tree.map(lambda leaf: jnp.asarray(leaf + shift), theta)
    other = model._replace(simulate=lambda key, theta, num: model.simulate(key, shifted, num))
    with pytest.raises(AssertionError, match="simulate and the log-density disagree"):
        check_model(other, theta)


def assert_mean_zero(draws):
    assert_unbiased(draws, jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), draws))


def test_regressions_simulate_their_likelihood_and_prior():
    """Residuals have mean zero given the features, weights and whitened residuals the stated
    variance.
    """
    keys = jax.random.split(jax.random.key(6), 2000)
    for name, mean in (("linear_regression", lambda a: a), ("logistic_regression", jax.nn.sigmoid)):
        model = MODELS[name].model
        w, x = jax.jit(jax.vmap(lambda key, model=model: model.simulate(key, (), 2)))(keys)
        residual = x["label"] - mean(jnp.einsum("snd,sd->sn", x["features"], w))
        variance = (
            0.36
            if name == "linear_regression"
            else (lambda p: p * (1.0 - p))(x["label"] - residual)
        )
        checks = {
            "w": w,
            "w^2": w**2 - 1.96,
            "residual": residual[:, :, None] * x["features"],
            "square": residual**2 - variance,
        }
        assert_mean_zero(jax.device_get(checks))


def test_eight_schools_simulates_its_likelihood_and_prior():
    model = models.eight_schools()
    w, x = jax.jit(jax.vmap(lambda key: model.simulate(key, (), 1)))(
        jax.random.split(jax.random.key(7), 2000)
    )
    white = (x["effect"][:, 0] - w[:, :1] - jnp.exp(w[:, 1:2]) * w[:, 2:]) / x["standard_error"][
        :, 0
    ]
    checks = {
        "mean": w[:, 0],
        "mean^2": w[:, 0] ** 2 - 25.0,
        "median spread": (w[:, 1] < np.log(5.0)) - 0.5,
        "noise": w[:, 2:],
        "residual": white,
        "square": white**2 - 1.0,
    }
    assert_mean_zero(jax.device_get(checks))


def test_eight_schools_data_are_rubins():
    data = models.eight_schools_data()
    assert data["effect"].shape == data["standard_error"].shape == (1, 8)
    assert data["effect"].sum() == 70.0 and data["standard_error"].sum() == 100.0
    # The precision-weighted mean effect that textbooks quote is 7.7, with standard error 4.1.
    precision = data["standard_error"] ** -2
    assert abs((precision * data["effect"]).sum() / precision.sum() - 7.7) < 0.05
    assert abs(precision.sum() ** -0.5 - 4.1) < 0.05


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: models.conjugate_normal(2, noise_scale=0.0), "noise_scale=0.0"),
        (lambda: models.linear_regression(3, prior_scale=-1.0), "prior_scale=-1.0"),
        (lambda: models.probabilistic_pca(4, 0), "latent_dim=0"),
        (lambda: models.eight_schools(spread_scale=float("nan")), "spread_scale=nan"),
    ],
)
def test_settings_that_are_not_positive_are_refused(make, what):
    with pytest.raises(ValueError, match=f"{what}.*must be positive"):
        make()


def test_a_datum_of_the_wrong_shape_is_refused():
    with pytest.raises(AssertionError):
        models.conjugate_normal(2).log_local(NORMAL, None, jnp.zeros(2), jnp.zeros(3))
