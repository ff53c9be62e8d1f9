"""The script on stochastic VI: its maximum is the closed form's, its bounds are exact, and what it
says of kept and restarted rows shows in a short run.
"""

import json

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from experiments.common import harness
from experiments.stochastic_vi import __main__ as script
from experiments.stochastic_vi.training import build, maximum


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return script.main(["--smoke", f"--results_dir={tmp_path_factory.mktemp('svi')}"])


def test_the_maximum_is_the_evidence_at_its_closed_form_parameters():
    config = script.smoke_settings(script.Config())
    x = np.asarray(build(config).x, np.float64)
    evidence = oracles.pca_maximum(x, config.latent_dim)[3] / config.num_data
    assert abs(evidence - maximum(jnp.asarray(x), config.latent_dim)) < 1e-5


def test_kept_rows_and_an_encoder_arrive_and_the_prior_stays_short(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    of = metrics["runs"]
    for one in of.values():
        # Exact numbers: the order holds without any error of sampling.
        assert one["bound"] <= one["evidence"] + 1e-4
        assert one["evidence"] <= metrics["maximum_evidence"] + 1e-3
        assert one["theta_steps"] * one["local_steps"] <= metrics["num_gradients"]
    assert of["kept, T = 12"]["short_of_maximum"] < 0.3
    assert of["encoder, T = 5"]["short_of_maximum"] < 0.3
    assert of["prior, T = 5"]["short_of_maximum"] > 1.0
    assert 10.0 < of["kept, until, T <= 12"]["local_steps"] < 12.0  # two windows at least
    for name in ("kept, T = 12", "encoder, T = 5"):
        assert abs(of[name]["scale_ratio"] - 1.0) < 0.2 and of[name]["mean_error"] < 0.5


def test_the_figures_come_from_the_folder_alone(folder):
    drawn = script.plot(folder)
    assert {path.stem for path in drawn} == {
        "bound_by_theta_steps",
        "bound_by_seconds",
        "bound_by_local_steps",
        "posteriors",
    }
    table = harness.read_tables(folder)["path"]
    assert np.all(np.diff(table[table.run == "kept, T = 12"].theta_steps) > 0)
