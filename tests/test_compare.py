"""Two results folders side by side: what differs, and by how many standard errors."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.compare import __main__ as compare
from experiments.compare.runs import differences, load

M = 400


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.1
    steps: int = 5
    results_dir: str = "results"


def made(place, scores, *, images="aa", rate=0.1, seeds=()):
    """A run that scored M images, or several seeds."""
    metrics = {
        "scored_images": images,
        "test_elbo": float(np.mean(scores)),
        "test_elbo_images_se": float(np.std(scores, ddof=1) / len(scores) ** 0.5),
        "rules": {"rloo": {"cost": 2.0}},
        "board": [
            {"estimator": "pathwise()", "block": "phi", "variance": 3.0, "variance_error": 0.4},
            {"estimator": "score()", "block": "phi", "variance": 9.0, "variance_error": np.nan},
        ],
        "names": ["a"],
        "flag": True,
        **harness.over_seeds([{"test_elbo": value} for value in seeds], ("test_elbo",)),
    }
    steps = [0, 10, 20]
    history = pd.DataFrame(
        {"seed": 0, "step": steps, "test_elbo": metrics["test_elbo"] + np.arange(3)}
    )
    outcome = Outcome(metrics, {"test_elbo": np.asarray(scores)}, {"history": history})
    return harness.execute(
        "toy", Config(rate, results_dir=str(place)), lambda c: outcome, lambda o: "", lambda f: []
    )


@pytest.fixture(scope="module")
def scores():
    """The same images under two models: their difficulty dominates, the second is 0.05 better."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(-20.0, 5.0, M)
    return difficulty + rng.normal(0.0, 0.1, M), difficulty + 0.05 + rng.normal(0.0, 0.1, M)


def only(folders, metric):
    first, other = (load(folder) for folder in folders)
    (row,) = [row for row in differences("B", first, other) if row.metric == metric]
    return row


def test_runs_on_the_same_images_are_compared_image_by_image(scores, tmp_path):
    row = only([made(tmp_path, part) for part in scores], "test_elbo")
    expected = stats.ttest_rel(scores[1], scores[0])
    assert row.basis == "image by image" and row.z == pytest.approx(expected.statistic)
    assert row.z > 5.0  # 0.05 nats are seen under a spread of 5


def test_runs_on_other_images_are_not(scores, tmp_path):
    """Image by image, other images would be compared at random."""
    folders = [made(tmp_path, part, images=name) for part, name in zip(scores, "ab", strict=True)]
    row = only(folders, "test_elbo")
    expected = stats.ttest_ind(scores[1], scores[0], equal_var=False)
    assert row.basis == "errors of both" and row.z == pytest.approx(expected.statistic)
    assert abs(row.z) < 2.0


def test_runs_of_several_seeds_are_compared_by_their_spread(scores, tmp_path):
    seeds = ([-20.0, -20.4, -20.1], [-19.9, -20.2, -20.0])
    folders = [made(tmp_path, p, seeds=s) for p, s in zip(scores, seeds, strict=True)]
    row = only(folders, "test_elbo")
    expected = sum(np.var(s, ddof=1) / 3 for s in seeds) ** 0.5
    assert row.basis == "seeds" and row.error == pytest.approx(expected)


def test_numbers_without_an_error_have_no_z(scores, tmp_path):
    folders = [made(tmp_path, part) for part in scores]
    for metric in ("rules/rloo/cost", "board/score()/phi/variance"):
        row = only(folders, metric)
        assert np.isnan(row.z) and row.difference == 0.0 and row.basis == ""
    row = only(folders, "board/pathwise()/phi/variance")
    assert row.error == pytest.approx(0.4 * 2**0.5) and row.basis == "errors of both"


def test_the_script_says_what_differs_and_draws_the_test_curves(scores, tmp_path, capsys):
    folders = [
        str(made(tmp_path, part, rate=r)) for part, r in zip(scores, (0.1, 0.3), strict=True)
    ]
    folder = compare.main([*folders, f"--results_dir={tmp_path}"])
    said = capsys.readouterr().out
    assert "rate" in said and "A 0.1,  B 0.3" in said and "steps" not in said
    _, metrics, _ = harness.read(folder)
    assert metrics["settings"] == {"rate": [0.1, 0.3]} and not metrics["unfinished"]
    table = harness.read_tables(folder)["differences"]
    assert list(table.metric) == [
        "test_elbo",
        "board/pathwise()/phi/variance",
        "rules/rloo/cost",
        "board/score()/phi/variance",
    ]
    assert [path.name for path in compare.plot(folder)] == ["test_elbo.png"]
    with pytest.raises(ValueError, match="1 folders given"):
        compare.main([folders[0], f"--results_dir={tmp_path}"])


def test_an_unfinished_run_is_called_so(scores, tmp_path):
    def run(config):
        yield Outcome({"test_elbo": 1.0}, {})
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        harness.execute("cut", Config(results_dir=str(tmp_path)), run, lambda o: "", lambda f: [])
    (cut,) = (tmp_path / "cut").iterdir()
    done = compare.run(compare.Config((str(made(tmp_path, scores[0])), str(cut))))
    assert done.metrics["unfinished"] == {"B": "failed"}
    assert "B is UNFINISHED: failed" in compare.report(done)
