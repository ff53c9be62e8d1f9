"""The main job runs from its command line, its folder explains itself, and its parts do what the
report says.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import vijax as vj
from experiments.common import harness
from experiments.common.images import binarized, score
from experiments.vae import __main__ as vae
from experiments.vae.held_out import held_out_fitter
from experiments.vae.problem import build, make_estimator
from vijax.models import Mlp, bernoulli_pixels, normal_pixels

FIGURES = ["elbo_histogram", "latent_map", "learning_curve", "prior_samples", "reconstructions"]
TINY = ["--smoke", "--latent-dim", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run with an encoder."""
    return vae.main([*TINY, f"--results_dir={tmp_path_factory.mktemp('amortized')}"])


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory):
    """A finished run with a row phi_i per image, and everything else not the default."""
    where = f"--results_dir={tmp_path_factory.mktemp('table')}"
    settings = [
        "--guide=per_datapoint",
        "--likelihood=gaussian",
        "--objective=renyi",
        "--alpha=0.5",
        "--num_samples=3",
    ]
    return vae.main([*TINY, *settings, "--rule=doubly_reparameterized", where])


@pytest.mark.parametrize("which", ["folder", "table_folder"])
def test_a_run_leaves_a_folder_that_explains_itself(which, request):
    folder = request.getfixturevalue(which)
    assert (
        folder.parent.name == "vae"
        and folder.name[8] == "T"
        and len(folder.name.split("-")[1]) == 8
    )
    config, metrics, arrays = harness.read(folder)
    assert config["latent_dim"] == 3 and arrays["latent"].shape == (128, 3)
    environment = json.loads((folder / "environment.json").read_text())
    assert {"commit", "versions", "device", "seconds"} <= set(environment) and environment[
        "seconds"
    ] > 0
    summary = (folder / "summary.txt").read_text()
    for part in (
        "train ELBO",
        "test ELBO",
        "test log-evidence",
        "gap",
        "s to compile",
        "s per epoch",
    ):
        assert part in summary
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == FIGURES
    for path in (folder / "figures").iterdir():
        grey = np.asarray(Image.open(path).convert("L"))
        assert min(grey.shape) > 200 and grey.std() > 5  # not blank
    assert (
        3 <= metrics["compilations"] <= 6
    )  # parameters, the loop's start, its steps; what reads the first result
    assert metrics["compile_seconds"] > 0 and metrics["seconds_per_epoch"] > 0


@pytest.mark.parametrize("which", ["folder", "table_folder"])
def test_the_report_is_made_of_the_stored_images(which, request):
    _, metrics, arrays = harness.read(request.getfixturevalue(which))
    gap = arrays["test_log_evidence"] - arrays["test_elbo"]
    assert metrics["gap"] == pytest.approx(gap.mean(), rel=1e-4) and metrics["gap"] > 0
    assert metrics["test_elbo_images_se"] == pytest.approx(
        arrays["test_elbo"].std(ddof=1) / 128**0.5, rel=1e-4
    )
    sampling = np.sqrt(np.sum(arrays["test_standard_error"] ** 2)) / 128
    assert metrics["test_log_evidence_sampling_se"] == pytest.approx(sampling, rel=1e-4)
    assert arrays["train_curve"][-1] > arrays["train_curve"][0]
    assert arrays["epoch"][-1] == metrics["epochs_run"] == 10


def test_figures_are_drawn_again_from_the_folder_alone(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "figures")
    assert vae.main([f"--replot={copy}"]) == copy
    for name in FIGURES:
        again, before = (
            np.asarray(Image.open(f / "figures" / f"{name}.png")) for f in (copy, folder)
        )
        np.testing.assert_array_equal(again, before)
    with pytest.raises(FileNotFoundError, match="no finished results folder"):
        vae.plot(tmp_path)


def test_theta_is_frozen_while_rows_of_test_images_are_fitted():
    config = dataclasses.replace(
        vae.smoke_settings(vae.Config(guide="per_datapoint")), max_scored=32, test_steps=100
    )
    job = build(config)
    held_out = held_out_fitter(config, job)
    assert held_out is not None
    guide = held_out.guide
    estimator = make_estimator(job, guide, 32)
    before = estimator.init_params(jax.random.key(0))
    after = held_out.fit(jax.random.key(1), before, before.phi, 100)
    jax.tree.map(np.testing.assert_array_equal, before.theta, after.theta)
    bounds = [
        score(jax.random.key(2), job.model, guide, p, job.scored_test, 10).elbo
        for p in (before, after)
    ]
    assert stats.ttest_rel(*bounds).statistic < -5  # and the bound of the same images has risen


def test_the_command_line_takes_every_spelling():
    for args in (["--num_samples", "5"], ["--num-samples=5"], ["--num_samples=5", "--smoke=false"]):
        assert harness.parse(vae.Config, "", args) == vae.Config(num_samples=5)
    for args in (["--smoke", "--widths", "20", "30"], ["--smoke=true", "--widths=20,30"]):
        assert harness.parse(vae.Config, "", args) == vae.Config(smoke=True, widths=(20, 30))
    assert harness.config_hash(vae.Config()) == harness.config_hash(vae.Config(results_dir="x"))
    assert harness.config_hash(vae.Config()) != harness.config_hash(vae.Config(seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"binarize": "dynamic", "guide": "per_datapoint"}, "belongs to one observed"),
        ({"binarize": "dynamic", "likelihood": "gaussian"}, "nothing to binarize"),
        ({"epochs": 0}, "at least 1"),
        ({"min_scale": -1.0, "likelihood": "gaussian"}, "must be positive"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(vae.Config(**settings))


def test_dynamic_binarization_averages_to_the_grey_image():
    """The estimator sees x ~ Bernoulli(grey): a loss linear in x has its value at the grey image as
    mean.
    """
    grey = jnp.asarray([[0.0, 0.25, 1.0], [0.5, 0.75, 0.1]])

    def take(key, params, state, batch):
        return batch.x, state

    estimator = binarized(vj.estimator_from(take, lambda key: (), num_data=2))
    keys = jax.random.split(jax.random.key(0), 4000)
    batch = vj.Batch(grey, jnp.arange(2))
    drawn = np.asarray(jax.vmap(lambda key: estimator.estimate(key, (), (), batch)[0])(keys))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    error = np.sqrt(grey * (1 - grey) / 4000) + 1e-12
    assert np.max(np.abs(drawn.mean(axis=0) - grey) / error) < 5
    # Planted: thresholding is another thing
    assert np.max(np.abs((drawn > 0.5).mean(axis=0) - jnp.round(grey)) / error) > 5
    alone = estimator.estimate(keys[0], (), (), jax.tree.map(lambda leaf: leaf[1:], batch))[0]
    np.testing.assert_array_equal(alone[0], drawn[0, 1])  # the draw follows the datum


def test_pixel_densities_match_scipy_and_the_variance_has_a_floor():
    rng = np.random.default_rng(0)
    output, x = rng.normal(size=8).astype(np.float32) * 3, rng.random(4).astype(np.float32)
    scale = np.sqrt(np.exp(2 * np.log(0.1) + np.logaddexp(0.0, output[4:] - 2 * np.log(0.1))))
    got = normal_pixels(min_scale=0.1).log_prob(jnp.asarray(output), jnp.asarray(x))
    assert got == pytest.approx(stats.norm.logpdf(x, output[:4], scale).sum(), rel=1e-5)
    flat = normal_pixels(min_scale=0.1).log_prob(jnp.asarray([0.0, -1e4]), jnp.zeros(1))
    assert flat == pytest.approx(stats.norm.logpdf(0.0, 0.0, 0.1), rel=1e-5)
    bits = jnp.asarray([0.0, 1.0, 1.0, 0.0])
    expected = stats.bernoulli.logpmf(np.asarray(bits, int), 1 / (1 + np.exp(-output[:4]))).sum()
    assert bernoulli_pixels().log_prob(jnp.asarray(output[:4]), bits) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    "likelihood", [bernoulli_pixels(), normal_pixels(min_scale=0.2)], ids=["bernoulli", "normal"]
)
def test_simulated_images_have_the_decoders_mean(likelihood):
    model = vj.models.vae(Mlp((5,), 3 * likelihood.outputs_per_pixel), 2, likelihood)
    theta = model.init(jax.random.key(0))
    z, x = model.simulate(jax.random.key(1), theta, 4000)
    decoder = Mlp((5,), 3 * likelihood.outputs_per_pixel)
    residual = np.asarray(x - jax.vmap(lambda z: likelihood.mean(decoder.apply(theta, z)))(z))
    assert np.max(np.abs(residual.mean(axis=0)) / (residual.std(axis=0) / 4000**0.5)) < 5
    # Planted: a shifted mean
    assert np.max(np.abs((residual + 0.2).mean(axis=0)) / (residual.std(axis=0) / 4000**0.5)) > 5


def test_closed_form_kl_applies_because_the_prior_is_stated():
    model = vj.models.vae(Mlp((4,), 6), 2, bernoulli_pixels())
    guide = vj.guides.per_datapoint(vj.families.diag_normal(2), num_data=5)
    rule = vj.rules.closed_form_kl(vj.rules.pathwise())
    vj.estimator(model, guide, rules=rule, num_samples=2, num_data=5)
    # Planted: the same model without the statement
    with pytest.raises(ValueError, match="no prior is stated"):
        vj.estimator(model._replace(priors={}), guide, rules=rule, num_samples=2, num_data=5)
