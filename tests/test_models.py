"""Log-joints against scipy's densities, priors stated as families, simulation against the evidence,
settings refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special, stats

from vijax import families, models

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
PCA = {"weights": RNG.normal(size=(4, 2)), "bias": RNG.normal(size=4), "log_noise": np.array(-0.3)}
MIXTURE = {
    "logits": RNG.normal(size=3),
    "loc": RNG.normal(size=(3, 2)),
    "log_scale": 0.3 * RNG.normal(size=(3, 2)),
}
FACTORS = {
    "logits": RNG.normal(size=2),
    "weights": RNG.normal(size=(2, 3, 1)),
    "bias": RNG.normal(size=(2, 3)),
    "log_noise": np.array(-0.2),
}
NORMAL = {"loc": RNG.normal(size=2), "log_scale": 0.3 * RNG.normal(size=2)}
SPREAD = {"log_scale": np.array([0.3, -0.2])}


def log_normal(x, loc, scale):
    return stats.norm.logpdf(x, loc, scale).sum()


# Per model: theta, and what scipy says of log p(z) and log p(x | z) at (w, z, x).
LOCAL = {
    "conjugate_normal": (
        models.conjugate_normal(2, noise_scale=0.7),
        NORMAL,
        lambda w, z: log_normal(z, NORMAL["loc"], np.exp(NORMAL["log_scale"])),
        lambda w, z, x: log_normal(x, z, 0.7),
    ),
    "probabilistic_pca": (
        models.probabilistic_pca(4, 2),
        PCA,
        lambda w, z: log_normal(z, 0.0, 1.0),
        lambda w, z, x: log_normal(x, PCA["weights"] @ z + PCA["bias"], np.exp(-0.3)),
    ),
    "gaussian_mixture": (
        models.gaussian_mixture(3, 2),
        MIXTURE,
        lambda w, z: np.log(special.softmax(MIXTURE["logits"])) @ z,
        lambda w, z, x: log_normal(x, z @ MIXTURE["loc"], np.exp(z @ MIXTURE["log_scale"])),
    ),
    "mixture_of_factor_analyzers": (
        models.mixture_of_factor_analyzers(2, 3, 1),
        FACTORS,
        lambda w, z: (
            np.log(special.softmax(FACTORS["logits"])) @ z["c"] + log_normal(z["z"], 0.0, 1.0)
        ),
        lambda w, z, x: log_normal(
            x,
            np.tensordot(z["c"], FACTORS["weights"], 1) @ z["z"] + z["c"] @ FACTORS["bias"],
            np.exp(-0.2),
        ),
    ),
    "hierarchical_normal": (
        models.hierarchical_normal(2, prior_scale=1.5, noise_scale=0.6),
        SPREAD,
        lambda w, z: log_normal(z, w, np.exp(SPREAD["log_scale"])),
        lambda w, z, x: log_normal(x, z, 0.6),
    ),
}
FEATURES = {"features": RNG.normal(size=3), "label": np.array(1.0)}
STUDY = jax.tree.map(lambda leaf: leaf[0], models.eight_schools_data())


def study_log_prior(w):
    return (
        log_normal(w[0], 0.0, 5.0)
        + stats.halfcauchy.logpdf(np.exp(w[1]), scale=5.0)
        + w[1]
        + log_normal(w[2:], 0.0, 1.0)
    )


# Per model: dimension of w, datum, and what scipy says of log p(w) and log p(x | w).
GLOBAL = {
    "linear_regression": (
        models.linear_regression(3, noise_scale=0.6, prior_scale=1.4),
        3,
        FEATURES,
        lambda w: log_normal(w, 0.0, 1.4),
        lambda w, x: log_normal(x["label"], x["features"] @ w, 0.6),
    ),
    "logistic_regression": (
        models.logistic_regression(3, prior_scale=1.4),
        3,
        FEATURES,
        lambda w: log_normal(w, 0.0, 1.4),
        lambda w, x: stats.bernoulli.logpmf(x["label"], special.expit(x["features"] @ w)),
    ),
    "eight_schools": (
        models.eight_schools(),
        10,
        STUDY,
        study_log_prior,
        lambda w, x: log_normal(x["effect"], w[0] + np.exp(w[1]) * w[2:], x["standard_error"]),
    ),
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_log_joint_is_scipys_and_its_prior_a_family(name):
    model, theta, log_prior, log_lik = LOCAL[name]
    w = np.array([0.4, -0.9]) if "w" in model.latents else None
    latents, data = jax.device_get(
        jax.jit(model.simulate, static_argnums=2)(jax.random.key(1), theta, 4)
    )
    log_local = jax.jit(model.log_local)
    for i in range(4):
        z, x = jax.tree.map(
            lambda leaf, i=i: leaf[i], (latents["z"] if w is not None else latents, data)
        )
        prior, lik = log_prior(w, z), log_lik(w, z, x)
        assert abs(float(log_local(theta, w, z, x)) - prior - lik) < 1e-10
        stated = model.prior_z.family.log_prob(
            model.prior_z.locate(theta, w), jax.tree.map(jnp.asarray, z)
        )
        assert abs(float(stated) - prior) < 1e-10


@pytest.mark.parametrize("name", GLOBAL)
def test_global_log_joint_is_scipys_and_its_prior_a_family(name):
    model, dim, x, log_prior, log_lik = GLOBAL[name]
    for w in np.random.default_rng(2).normal(size=(4, dim)):
        assert abs(float(model.log_prior((), jnp.asarray(w))) - log_prior(w)) < 1e-10
        assert abs(float(model.log_local((), jnp.asarray(w), None, x)) - log_lik(w, x)) < 1e-10
        if model.prior_w is not None:
            assert (
                abs(
                    float(model.prior_w.family.log_prob(model.prior_w.locate(()), jnp.asarray(w)))
                    - log_prior(w)
                )
                < 1e-10
            )


@pytest.mark.parametrize(
    "family", [families.diag_normal, families.full_normal], ids=lambda f: f.__name__
)
def test_prior_is_stated_in_the_family_of_the_guide(family):
    model = models.probabilistic_pca(4, 2, prior_family=family)
    assert model.prior_z.family.name == family(2).name
    lam = model.prior_z.locate(PCA, None)
    assert float(model.prior_z.family.kl(lam, lam)) == 0.0


def test_mixture_of_factor_analyzers_evidence_is_the_oracles():
    model = LOCAL["mixture_of_factor_analyzers"][0]
    for x in np.random.default_rng(3).normal(size=(3, 3)):
        exact = oracles.factor_mixture_log_evidence(x, **FACTORS)
        assert abs(float(model.log_evidence(FACTORS, jnp.asarray(x))) - exact) < 1e-10


@pytest.mark.parametrize("name", ["gaussian_mixture", "mixture_of_factor_analyzers"])
def test_log_joint_is_affine_in_a_relaxed_assignment(name):
    """What relaxations differentiate: between two assignments the log joint is their straight
    line.
    """
    model, theta, _, _ = LOCAL[name]
    z, x = model.simulate(jax.random.key(1), theta, 1)
    corners = jnp.eye(2, theta["logits"].shape[0])

    def at(c):
        latent = c if name == "gaussian_mixture" else {"c": c, "z": z["z"][0]}
        return float(model.log_local(theta, None, latent, x[0]))

    assert (
        abs(at(0.3 * corners[0] + 0.7 * corners[1]) - 0.3 * at(corners[0]) - 0.7 * at(corners[1]))
        < 1e-10
    )


def score_draws(name, simulated_theta, *, num_draws=4000):
    """Scores d log p(x) / d theta at `LOCAL`'s theta of data simulated at another: mean zero if the
    two agree.
    """
    model, theta, _, _ = LOCAL[name]
    theta, simulated_theta = jax.tree.map(jnp.asarray, (theta, simulated_theta))

    @jax.jit
    def draws(key):
        if "w" in model.latents:

            def one(k):
                return jax.grad(model.log_evidence)(theta, model.simulate(k, simulated_theta, 3)[1])

            return jax.vmap(one)(jax.random.split(key, num_draws))
        _, x = model.simulate(key, simulated_theta, num_draws)
        return jax.vmap(jax.grad(model.log_evidence), (None, 0))(theta, x)

    return jax.device_get(draws(jax.random.key(5)))


def assert_mean_zero(draws):
    for path, leaf in jax.tree_util.tree_leaves_with_path(draws):
        z = np.abs(leaf.mean(axis=0)) / (leaf.std(axis=0, ddof=1) / len(leaf) ** 0.5)
        assert z.max() < 5.0, f"{jax.tree_util.keystr(path)}: z = {z.max():.1f}"


@pytest.mark.parametrize("name", LOCAL)
def test_simulation_agrees_with_the_evidence(name):
    assert_mean_zero(score_draws(name, LOCAL[name][1]))


@pytest.mark.parametrize("name", ["probabilistic_pca", "gaussian_mixture"])
def test_score_check_catches_data_of_another_theta(name):
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, LOCAL[name][1])
    with pytest.raises(AssertionError, match="z ="):
        assert_mean_zero(score_draws(name, shifted))


def test_regressions_simulate_their_likelihood_and_prior():
    """Residuals have mean zero given the features, weights and whitened residuals the stated
    variance.
    """
    keys = jax.random.split(jax.random.key(6), 2000)
    for name, mean in (("linear_regression", lambda a: a), ("logistic_regression", jax.nn.sigmoid)):
        model = GLOBAL[name][0]
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
