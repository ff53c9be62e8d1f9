"""The script that holds EM, CAVI and gradient VI against the sum over all assignments: its smoke
setting's numbers.
"""

import numpy as np
import pytest

from experiments.common import harness
from experiments.em_mixture import __main__ as em_mixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return em_mixture.main(["--smoke", f"--results_dir={tmp_path_factory.mktemp('results')}"])


def test_every_gap_is_the_expected_one(folder):
    _, metrics, _ = harness.read(folder)
    rows = {row["method"]: row for row in metrics["rows"]}
    assert metrics["status"] == "finished" and metrics["num_assignments"] == 729
    for name, row in rows.items():
        assert row["agrees"], f"{name}: gap {row['gap']}, expected {row['expected_gap']}"
        assert row["gap"] == pytest.approx(row["log_evidence"] - row["bound"], abs=1e-12)
        exact = name.endswith("labellings")
        assert (row["bound_se"] > 0.0) is exact
    assert abs(rows["EM"]["gap"]) < 1e-10 and rows["hard E-steps"]["gap"] > 0.01
    known = rows["CAVI"]["gap"] - metrics["log_labellings"]
    mixed = rows["CAVI's q over 6 labellings"]
    assert abs(mixed["gap"] - known) < 0.05 + 5.0 * mixed["bound_se"]  # they hardly overlap
    for name in ("CAVI", "SVI", "gradient VI, enumerated"):
        assert rows[name]["gap"] > metrics["log_labellings"]
    assert abs(rows["SVI"]["bound"] - rows["CAVI"]["bound"]) < 0.01
    assert rows["gradient VI, enumerated"]["bound"] < rows["CAVI"]["bound"]
    assert metrics["least_em_rise"] > -1e-10 and metrics["least_cavi_rise"] > -1e-10


def test_the_bounds_of_the_picture_touch_and_stay_below(folder):
    _, metrics, arrays = harness.read(folder)
    place, height, bounds, touch, touched = (
        arrays[f"picture/{name}"] for name in ("place", "likelihood", "bounds", "touch", "touched")
    )
    assert metrics["touching"] < 1e-10
    assert np.all(bounds <= height[None] + 1e-10)
    for curve, at, value, after in zip(bounds, touch, touched, [*touch[1:], None], strict=True):
        assert np.interp(at, place, curve) == pytest.approx(value, abs=0.01)
        if after is not None:  # the M-step goes to the bound's top, between two points of the grid
            assert abs(place[np.argmax(curve)] - after) <= place[1] - place[0]
    assert np.all(np.diff(touched) > 0.0)


def test_pairs_are_together_with_probabilities(folder):
    _, _, arrays = harness.read(folder)
    for name in ("exact", "EM", "CAVI"):
        shared = arrays[f"together/{name}"]
        np.testing.assert_allclose(shared, shared.T, atol=1e-12)
        np.testing.assert_allclose(np.diag(shared), 1.0, atol=1e-12)
        assert shared.min() >= 0.0 and shared.max() <= 1.0 + 1e-12
    assert np.abs(arrays["together/exact"] - arrays["together/CAVI"]).max() > 0.05


def test_it_is_drawn_again_from_its_folder(folder):
    for figure in (folder / "figures").iterdir():
        figure.unlink()
    em_mixture.main([f"--replot={folder}"])
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == {"bounds", "log_likelihood", "elbo", "assignments", "gaps"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_data": 12}, "--num_components=3 to the --num_data=12"),
        ({"batch_size": 3}, "--batch_size=3 must divide"),
        ({"rules": ("sore",)}, "no rule 'sore'; choose from enumerated"),
        ({"methods": ("EM",)}, "give EM, CAVI and any of"),
        ({"passes": 1}, "--passes=1 must be at least 2"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        em_mixture.check(em_mixture.Config(**settings))
