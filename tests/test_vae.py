"""The main job runs from its command line, its folder explains itself, and its parts do what the
report says.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time

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
from experiments.vae.report import sampling_error
from experiments.vae.training import learner
from vijax.models import Mlp, bernoulli_pixels, normal_pixels

FIGURES = [
    "active_units",
    "bound_against_samples_and_time",
    "elbo_histogram",
    "elbo_split",
    "latent_map",
    "learning_curve",
    "prior_samples",
    "reconstructions",
]
TINY = ["--smoke", "--latent-dim", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run with an encoder and two seeds."""
    return vae.main([*TINY, "--seeds=2", f"--results_dir={tmp_path_factory.mktemp('amortized')}"])


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


@pytest.mark.parametrize(("which", "seeds"), [("folder", 2), ("table_folder", 1)])
def test_the_learning_curve_is_a_table_by_steps_images_and_seconds(which, seeds, request):
    folder = request.getfixturevalue(which)
    _, metrics, arrays = harness.read(folder)
    history = harness.read_tables(folder)["history"]
    assert metrics["status"] == "finished" and metrics["seeds_scored"] == seeds
    for seed, rows in history.groupby("seed"):
        assert np.all(np.diff(rows.step) > 0) and np.all(np.diff(rows.seconds) > 0)
        assert np.all(rows.samples_seen == 64 * rows.step) and rows.seconds.iloc[0] > 0
        np.testing.assert_allclose(rows.epoch, rows.step / 23)  # batches of 64 out of 1,437
        np.testing.assert_allclose(rows.test_elbo, arrays["test_curves"][seed], rtol=1e-6)
        assert np.all(np.isfinite(rows.bound))
    np.testing.assert_allclose(arrays["test_curves"].mean(axis=0), arrays["test_curve"], rtol=1e-6)


def test_of_several_seeds_there_are_means_and_standard_errors(folder):
    _, metrics, arrays = harness.read(folder)
    each = metrics["test_elbo_seeds"]
    assert len(each) == 2 and each[0] != each[1]
    assert metrics["test_elbo"] == pytest.approx(np.mean(each), rel=1e-5)
    assert metrics["test_elbo_seeds_se"] == pytest.approx(np.std(each, ddof=1) / 2**0.5, rel=1e-5)
    assert metrics["test_elbo"] == pytest.approx(arrays["test_elbo"].mean(), rel=1e-5)
    assert "standard errors over seeds" in (folder / "summary.txt").read_text()


def test_the_stored_parameters_give_the_scores_again(folder):
    config = vae.Config(**{**harness.read(folder)[0], "widths": (32,)})
    job = build(config)
    guide = learner(config, job).guide
    estimator = make_estimator(job, guide, len(job.train_x))
    like = {f"seed_{seed}": estimator.init_params(jax.random.key(1)) for seed in (0, 1)}
    stored = harness.read_params(folder, like)
    for seed, expected in enumerate(harness.read(folder)[1]["test_elbo_seeds"]):
        key = jax.random.split(jax.random.key(seed), 3)[2]
        params, k = stored[f"seed_{seed}"], config.evidence_samples
        again = score(key, job.model, guide, params, job.scored_test, k)
        assert float(np.mean(again.elbo)) == pytest.approx(expected, rel=1e-6)


def test_ctrl_c_in_the_training_leaves_a_scored_and_marked_run(tmp_path):
    def press():
        main = threading.main_thread().ident
        while not inside(sys._current_frames()[main], "run_chunk"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    settings = ["--epochs=1000000", "--seeds=2", f"--results_dir={tmp_path}"]
    with pytest.raises(harness.Interrupted):
        vae.main([*TINY, *settings])
    thread.join()
    (folder,) = (tmp_path / "vae").iterdir()
    config, metrics, arrays = harness.read(folder)
    assert config["epochs"] == 1_000_000  # --smoke changes what is not given
    assert metrics["status"] == "interrupted" and metrics["interrupted"]
    assert metrics["seeds_scored"] == 1 and arrays["test_elbo"].shape == (128,)
    assert 0.0 < metrics["epochs_run"] < 1000.0
    assert (folder / "summary.txt").read_text().startswith("UNFINISHED")
    assert (folder / "figures" / "learning_curve.png").is_file()


def inside(frame, name):
    """Is the code of this frame called, however indirectly, by a function of this name?"""
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


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
        ({"epochs": 0}, "--epochs=0 must be at least 1"),
        ({"num_samples": 0}, "--num_samples=0 must be at least 1"),
        ({"widths": (8, 0)}, "--widths=8,0 must be at least 1"),
        ({"seeds": 0}, "--seeds=0 must"),
        ({"evidence_samples": 1}, "--evidence_samples=1 must be at least 2"),
        ({"min_scale": 0.0, "likelihood": "gaussian"}, "must be positive"),
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
    got = normal_pixels(min_scale=0.1).log_prob(jnp.asarray(x), jnp.asarray(output))
    assert got == pytest.approx(stats.norm.logpdf(x, output[:4], scale).sum(), rel=1e-5)
    flat = normal_pixels(min_scale=0.1).log_prob(jnp.zeros(1), jnp.asarray([0.0, -1e4]))
    assert flat == pytest.approx(stats.norm.logpdf(0.0, 0.0, 0.1), rel=1e-5)
    bits = jnp.asarray([0.0, 1.0, 1.0, 0.0])
    expected = stats.bernoulli.logpmf(np.asarray(bits, int), 1 / (1 + np.exp(-output[:4]))).sum()
    assert bernoulli_pixels().log_prob(bits, jnp.asarray(output[:4])) == pytest.approx(
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


@pytest.mark.parametrize(
    ("unreliable", "num_samples", "words"),
    [
        (0.0, 1000, "their error +- 0.012"),
        (0.25, 1000, "no error bar: Pareto k-hat above 0.67 for 25.0% of the images"),
        (1.0, 10, "too few to know their error"),
    ],
)
def test_an_error_bar_is_shown_only_where_it_can_be_trusted(unreliable, num_samples, words):
    metrics = {
        "share_unreliable": unreliable,
        "evidence_samples": num_samples,
        "test_log_evidence_sampling_se": 0.012,
    }
    assert sampling_error(metrics).startswith(words)
    assert ("+-" in sampling_error(metrics)) == (unreliable == 0.0)
