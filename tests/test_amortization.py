"""The amortization script on its smoke setting: its numbers fit together, its report says what
cannot be trusted, its figures come from its folder alone.
"""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.amortization import __main__ as amortization
from experiments.amortization.problem import GUIDES, fit_encoder, vae_config
from experiments.amortization.report import report
from experiments.common import harness
from experiments.vae.problem import build, make_guide

FIGURES = ["elbo_against_time", "gap_against_width", "gap_scatter", "test_elbo_against_refinement"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run."""
    return amortization.main(["--smoke", f"--results_dir={tmp_path_factory.mktemp('smoke')}"])


def test_a_run_judges_three_guides(folder):
    config, metrics, arrays = harness.read(folder)
    assert metrics["status"] == "finished" and tuple(metrics["guides"]) == GUIDES
    num = config["gap_images"]
    for name, one in metrics["guides"].items():
        for split in ("train", "test"):
            approximation, amort, best = (
                arrays[f"{name}/{split}_{part}"]
                for part in ("approximation", "amortization", "best")
            )
            assert approximation.shape == amort.shape == best.shape == (num,)
            assert one[f"{split}_amortization"] == pytest.approx(amort.mean(), rel=1e-4)
            spread = amort.std(ddof=1) / num**0.5
            assert one[f"{split}_amortization_images_se"] == pytest.approx(spread, rel=1e-4)
            # The evidence is of the best q's own samples: never below the bound
            assert np.all(approximation > -1e-4) and amort.mean() > 0.0
        assert one["test_elbo"] < one["test_log_evidence"]
    # theta is the decoder 3-32-64; the encoder 64-32-6, or 3 means and scales for 1,437 images
    decoder, encoder = 4 * 32 + 33 * 64, 65 * 32 + 33 * 6
    counts = [metrics["guides"][name]["parameters"] for name in GUIDES]
    assert counts == [decoder + 1437 * 6, decoder + encoder, decoder + encoder]
    history = harness.read_tables(folder)["history"]
    assert set(history.guide) == set(GUIDES) and np.all(history.seconds > 0.0)
    level, best = metrics["reached"]["test_elbo"], history.groupby("guide").test_elbo.max()
    assert level == pytest.approx(best.min())
    for name, seconds in metrics["reached"]["seconds"].items():
        own = history[history.guide == name]
        assert own[own.test_elbo >= level - 1e-9].seconds.min() == pytest.approx(seconds)


def test_refinement_raises_the_bound_towards_the_best(folder):
    """Image by image, under the encoder that was trained without any."""
    _, _, arrays = harness.read(folder)
    elbo, best = arrays["amortized/refinement"], arrays["amortized/test_best"]
    assert list(arrays["refinement_steps"]) == [0, 20] and elbo.shape == (2, len(best))
    gain = elbo[-1] - elbo[0]
    assert gain.mean() > 3.0 * gain.std(ddof=1) / len(gain) ** 0.5
    assert np.all(np.diff(elbo.mean(axis=1)) > 0.0)
    above = elbo[-1] - best
    assert above.mean() < 5.0 * above.std(ddof=1) / len(above) ** 0.5
    assert arrays["widths/test"].shape == arrays["widths/train"].shape == (1, len(best))
    assert arrays["widths/test"].mean() > arrays["amortized/test_amortization"].mean()


def test_the_report_says_what_cannot_be_trusted(folder):
    summary = (folder / "summary.txt").read_text()
    for part in ("test log-evidence", "approximation gap", "amortization gap", *GUIDES):
        assert part in summary
    # Ten weights per image have no k-hat
    assert "Pareto k-hat of K = 10 weights not known for 100.0% of per_datapoint" in summary
    assert "to expect: 0" in summary
    _, metrics, _ = harness.read(folder)
    trusted = {name: one | {"test_unreliable": 0.0} for name, one in metrics["guides"].items()}
    many = metrics | {"guides": trusted, "evidence_samples": 1000}
    assert "Pareto k-hat of K" not in report(harness.Outcome(many, {}))
    trusted["amortized"]["test_unreliable"] = 0.25
    assert "weights above 0.67 for 25.0% of amortized:" in report(harness.Outcome(many, {}))
    annealed = metrics["annealed"]
    assert abs(annealed["difference"]) < 5.0 * annealed["difference_se"]
    assert 0.5 < annealed["acceptance"] < 1.0


def test_figures_come_from_the_folder_alone(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "figures")
    assert amortization.main([f"--replot={copy}"]) == copy
    assert sorted(path.stem for path in (copy / "figures").iterdir()) == FIGURES
    for name in FIGURES:
        again, before = (
            np.asarray(Image.open(f / "figures" / f"{name}.png").convert("L"))
            for f in (copy, folder)
        )
        np.testing.assert_array_equal(again, before)
        assert min(again.shape) > 200 and again.std() > 5  # not blank


def test_encoders_of_other_widths_leave_the_decoder_as_it_is():
    config = dataclasses.replace(amortization.smoke_settings(amortization.Config()), width_epochs=1)
    settings = vae_config(config, "amortized")
    job = build(settings)
    guide = make_guide(settings, job.train_x)
    theta = job.model.init(jax.random.key(0))
    kept = jax.tree.map(jnp.copy, theta)
    fitted = fit_encoder(jax.random.key(1), config, job, guide, theta)
    jax.tree.map(np.testing.assert_array_equal, fitted.theta, kept)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap_images": 1}, "--gap_images=1 must be at least 2"),
        ({"gap_images": 2000}, "more than the --max_scored=360"),
        ({"encoder_widths": (8, 0)}, "--encoder_widths=8,0 must"),
        ({"evidence_samples": 1}, "--evidence_samples=1 must"),
        ({"refinement_steps": (0, -1)}, "--refinement_steps=0,-1 must"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        amortization.check(amortization.Config(**settings))
