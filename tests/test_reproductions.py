"""The reproductions at small size: what they claim holds, their figures come from their numbers,
and a fault is noticed.
"""

import json

import jax
import numpy as np
import pytest

from experiments.common import figures, harness
from experiments.gradient_variance.figures import VARIANCE
from experiments.gradient_variance.reproductions import (
    REPRODUCTIONS,
    bernoulli_noise,
    bernoulli_rules,
    bernoulli_toys,
    claims,
    closed_form_variances,
    logistic_along_training,
    sbn_along_training,
    snr_against_k,
    sticking_the_landing,
)
from vijax import lab

DONE = {}


def smoke(name):
    """Each runs once."""
    if name not in DONE:
        DONE[name] = REPRODUCTIONS[name].run(jax.random.key(0), smoke=True)
    return DONE[name]


def table(result_type, prefix, name):
    """A lab result as it was before it became columns."""
    arrays = smoke(name).arrays
    return result_type(*(arrays[f"{prefix}/{field}"] for field in result_type._fields))


def disagreeing(rows):
    return [row["what"] for row in rows if not row["agrees"]]


@pytest.mark.parametrize("name", list(REPRODUCTIONS))
def test_what_is_published_is_seen_here(name, tmp_path):
    outcome, module = smoke(name), REPRODUCTIONS[name]
    rows = outcome.metrics["claims"]
    assert rows and all(
        set(row) == {"what", "published", "ours", "error", "agrees", "source"} for row in rows
    )
    assert not disagreeing(rows)
    assert all(np.isfinite(row["ours"]) and row["error"] >= 0.0 for row in rows)
    harness.write_json(tmp_path / "metrics.json", outcome.metrics)
    np.savez(tmp_path / "arrays.npz", **outcome.arrays)
    with np.load(tmp_path / "arrays.npz") as stored:  # refuses what is no plain array
        written = module.plot(
            json.loads((tmp_path / "metrics.json").read_text()), dict(stored), tmp_path
        )
    assert written and all(path.stat().st_size > 10_000 for path in written)


@pytest.mark.parametrize("name", list(REPRODUCTIONS))
def test_figures_say_what_was_measured_and_in_which_unit(name, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: kept.append(figure))
    outcome = smoke(name)
    REPRODUCTIONS[name].plot(outcome.metrics, outcome.arrays, tmp_path)
    (figure,) = kept
    panels = figure.axes
    title = (figure.get_suptitle() or "") + panels[0].get_title()
    assert "95 % intervals" in title
    assert any(part in title for part in ("K = ", f"{outcome.metrics.get('num_draws')} draws"))
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in panels]
    assert any("nats$^2$" in label or "no unit" in label for label in labels)
    if name.endswith("along_training"):  # phi of a whole model: the one definition
        assert panels[0].get_ylabel() == VARIANCE
    figures.plt.close(figure)


def test_a_number_agrees_within_five_standard_errors_and_no_further():
    assert (
        claims.claim("", 1.0, 1.49, 0.1, "")["agrees"]
        and not claims.claim("", 1.0, 1.51, 0.1, "")["agrees"]
    )
    assert (
        claims.worst("", np.zeros(3), np.array([1.0, -2.0, 1.5]), np.array([1.0, 1.0, 0.1]), "")[
            "ours"
        ]
        == 1.5
    )
    assert (
        claims.below("", "", -0.3, 0.1, "")["agrees"]
        and not claims.below("", "", -0.1, 0.1, "")["agrees"]
    )
    with pytest.raises(ValueError, match="say agrees="):
        claims.claim("", "in words", 1.0, 0.1, "")


def test_a_closed_form_with_a_wrong_factor_disagrees(monkeypatch):
    right = closed_form_variances.CLOSED["pathwise"]
    wrong = (right[0], lambda d, s: 2.0 * right[1](d, s))
    monkeypatch.setattr(closed_form_variances, "CLOSED", {"pathwise": wrong})
    monkeypatch.setattr(
        closed_form_variances, "RULES", {"pathwise": closed_form_variances.RULES["pathwise"]}
    )
    rows = closed_form_variances.run(jax.random.key(0), smoke=True).metrics["claims"]
    assert [row["agrees"] for row in rows] == [True] * 3 + [False] * 3


def test_a_path_derivative_that_keeps_the_score_disagrees():
    """As if `path` were the total gradient."""
    landing = table(lab.Comparison, "landing", "sticking_the_landing")
    total = landing.estimator == "total"
    variance, error = landing.variance.copy(), landing.variance_error.copy()
    variance[~total], error[~total] = variance[total], error[total]
    rows = sticking_the_landing._landing_claims(
        landing._replace(variance=variance, variance_error=error)
    )
    assert len(disagreeing(rows)) == 3 and all("path" in what for what in disagreeing(rows))


def test_discrete_rules_with_a_wrong_mean_or_variance_disagree():
    name, draws = "disarm()", smoke("bernoulli_toys").metrics["num_draws"]
    seen = table(bernoulli_rules.Seen, name, "bernoulli_toys")
    assert draws >= 1000 and not disagreeing(bernoulli_toys._claims(name, seen))
    gradient = np.asarray(
        [bernoulli_noise.gradient(eta, bernoulli_rules.T) for eta in bernoulli_rules.ETA]
    )
    shrunk = seen._replace(bias=seen.bias - 0.5 * gradient)
    assert disagreeing(bernoulli_toys._claims(name, shrunk)) == [f"bias of {name}"]
    arm = np.asarray(
        [
            bernoulli_noise.arm(eta, bernoulli_rules.T, integrated=False)[1]
            for eta in bernoulli_rules.ETA
        ]
    )
    assert disagreeing(bernoulli_toys._claims(name, seen._replace(exact_variance=arm))) == [
        f"Var[{name}]"
    ]


def test_coupled_draws_of_size_two_are_a_pair():
    """Two enumerations of one estimator, written from two papers; and both have the gradient as
    their mean.
    """
    for eta in (-1.3, 0.0, 0.7):
        pair = bernoulli_noise.arm(eta, bernoulli_rules.T, integrated=True)
        np.testing.assert_allclose(bernoulli_noise.arms(eta, bernoulli_rules.T, 2), pair, rtol=1e-9)
        np.testing.assert_allclose(
            pair[0], bernoulli_noise.gradient(eta, bernoulli_rules.T), rtol=1e-9
        )


def test_swapped_estimators_disagree():
    """Orderings and slopes are not true of anything."""
    found = table(lab.Slopes, "slopes", "snr_against_k")
    assert (
        len(disagreeing(snr_against_k._claims(found._replace(estimator=found.estimator[::-1]))))
        >= 2
    )
    for module, pair in (
        (logistic_along_training, ("pathwise", "score")),
        (sbn_along_training, ("rloo", "double_cv")),
    ):
        name = module.__name__.split(".")[-1]
        compared = table(lab.Comparison, "along", name)
        other = dict(zip(pair, pair[::-1], strict=True))
        swapped = np.asarray([other.get(one, one) for one in compared.estimator.tolist()])
        assert disagreeing(module._claims(compared._replace(estimator=swapped)))
