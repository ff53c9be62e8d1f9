"""What a VAE's figures and metrics say of its latents: the ELBO's two parts, active units, the
manifold; titles, units and bands.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

import vijax as vj
from experiments.vae import __main__ as vae
from experiments.vae import figures, results
from experiments.vae.held_out import posteriors
from experiments.vae.problem import build
from experiments.vae.report import activity, split
from vijax.families import Kl, need

CONFIG = {
    "data": "digits",
    "latent_dim": 3,
    "guide": "amortized",
    "objective": "iwae",
    "rule": "doubly_reparameterized",
}
METRICS = {"num_train": 1437, "num_samples": 5}


def test_posteriors_are_those_of_the_guide_and_their_kl_is_the_family_s():
    family, num = vj.families.diag_normal(3), 4
    guide = vj.guides.per_datapoint(family, num)
    phi = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), guide.init(jax.random.key(0))
    )
    found = posteriors(guide, vj.Params((), phi, ()), jnp.zeros((num, 2)))
    np.testing.assert_allclose(found.mean, phi["z"]["loc"])
    prior = {"loc": jnp.zeros((num, 3)), "log_scale": jnp.zeros((num, 3))}
    whole = jax.vmap(need(family, Kl).value)(phi["z"], prior)
    np.testing.assert_allclose(found.kl.sum(axis=1), whole, rtol=1e-5)
    # Each unit's by quadrature
    z, loc, log_scale = np.linspace(-30, 30, 20_001), *(phi["z"][n][2, 1] for n in prior)
    q = stats.norm(float(loc), float(np.exp(log_scale)))
    by_sum = integrate.trapezoid(q.pdf(z) * (q.logpdf(z) - stats.norm.logpdf(z)), z)
    assert found.kl[2, 1] == pytest.approx(by_sum, rel=1e-4)


def test_the_split_adds_up_and_units_are_counted_by_what_varies():
    random = np.random.default_rng(0)
    spread = np.array([1.0, 0.2, 0.05, 0.0])  # variances 1, 0.04, 0.0025 and 0 over images
    mean = spread * stats.norm.ppf((np.arange(400) + 0.5) / 400)[:, None]
    kl, elbo = random.exponential(size=(400, 4)), random.normal(-20.0, 3.0, 400)
    found = split(mean, kl, elbo)
    assert found["test_reconstruction"] - found["test_kl"] == pytest.approx(elbo.mean())
    assert found["test_kl"] == pytest.approx(kl.sum(axis=1).mean())
    assert found["test_kl_images_se"] == pytest.approx(kl.sum(axis=1).std(ddof=1) / 20.0)
    assert found["active_units"] == 2  # the last has KL, but says the same of every image
    np.testing.assert_allclose(activity(mean)[:2], spread[:2] ** 2, rtol=0.01)


def test_the_manifold_shows_the_decoder_at_quantiles_of_the_prior():
    config = vae.smoke_settings(vae.Config(latent_dim=2))
    job = build(config)
    theta = job.model.init(jax.random.key(0))
    shown = results.pictures(config, job, theta, jnp.zeros((len(job.scored_test), 2)))
    grid = figures.quantile_grid()
    assert shown["manifold"].shape == (400, 8, 8)
    assert grid[0, 0] == grid[20, 0] < grid[19, 0] and grid[0, 1] > grid[-1, 1]  # upwards
    np.testing.assert_allclose(stats.norm.cdf(grid[[0, 19], 0]), [0.025, 0.975], rtol=1e-5)
    image = job.likelihood.mean(job.decoder.apply(theta, grid[25])).reshape(8, 8)
    np.testing.assert_allclose(shown["manifold"][25], image, rtol=1e-5)


def history(seeds):
    rows = [
        {
            "seed": seed,
            "step": step,
            "epoch": step / 10.0,
            "samples_seen": 64 * step,
            "seconds": 0.1 * step,
            "train_elbo": -20.0 + 0.01 * step + seed,
            "train_elbo_images_se": 0.2,
            "test_elbo": -21.0 + 0.01 * step + seed,
            "test_elbo_images_se": 0.3,
        }
        for seed in range(seeds)
        for step in (10, 20, 30)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def drawn(monkeypatch):
    """Draws with so many seeds; figures by name, kept open until the test is over."""
    kept, random = {}, np.random.default_rng(0)
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: kept.update({name: figure}))
    images = random.random((10, 8, 8))
    arrays = {
        "original": images,
        "reconstruction": images,
        "prior_means": random.random((100, 8, 8)),
        "manifold": random.random((400, 8, 8)),
        "latent": random.normal(size=(50, 3)),
        "label": np.arange(50) % 10,
        "train_elbo": random.normal(size=60),
        "test_elbo": random.normal(-20.0, 1.0, 50),
        "kl_of_units": random.random((50, 3)),
        "test_kl": random.random(50),
    }

    def draw(seeds):
        figures.draw(None, CONFIG, METRICS, arrays, history(seeds))
        return kept

    yield draw
    figures.plt.close("all")


def test_every_figure_says_what_it_is_of(drawn):
    kept = drawn(1)
    assert {"manifold", "elbo_split", "active_units", "bound_against_samples_and_time"} <= set(kept)
    for name, figure in kept.items():
        title = (figure.get_suptitle() or "") + figure.axes[0].get_title()
        for part in ("digits", "N = 1437", "IWAE, K = 5", "doubly_reparameterized", "D = 3"):
            assert part in title, (name, title)
    for name in ("learning_curve", "bound_against_samples_and_time", "elbo_split"):
        assert "nats per image" in kept[name].axes[0].get_ylabel()
    across, time = kept["bound_against_samples_and_time"].axes
    np.testing.assert_array_equal(across.lines[1].get_xdata(), [640, 1280, 1920])
    np.testing.assert_allclose(time.lines[1].get_xdata(), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(time.lines[1].get_ydata(), [-20.9, -20.8, -20.7])


@pytest.mark.parametrize("seeds", [1, 3])
def test_bands_are_standard_errors_over_seeds_or_images(drawn, seeds):
    axes = drawn(seeds)["learning_curve"].axes[0]
    middle, error = (-20.9, 0.3) if seeds == 1 else (-19.9, 1.0 / 3**0.5)
    points = axes.collections[1].get_paths()[0].vertices
    at_first = points[points[:, 0] == 1.0, 1]
    np.testing.assert_allclose([at_first.min(), at_first.max()], [middle - error, middle + error])
    assert ("over 3 seeds" if seeds == 3 else "over images") in axes.get_title()
