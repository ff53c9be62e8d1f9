"""The command: names, reasons of refusals, exact gradients of its problems, files of one's own,
what it writes.
"""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import vijax as vj
from experiments.common import figures as common_figures
from experiments.common import folders, harness
from experiments.gradient_variance import __main__ as gradient_variance
from experiments.gradient_variance import job, measuring
from experiments.gradient_variance.estimators import (
    build,
    estimator,
    every_name,
    judge,
    parts_of,
    unbiased,
)
from experiments.gradient_variance.files import from_file
from experiments.gradient_variance.problems import PROBLEMS, Problem
from vijax import lab, rows

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
FILE = next(
    block
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    if "def problem()" in block
)
NAMES = ["pathwise()", "antithetic", "shrunk"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The file that the README shows."""
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def folder(mine):
    """One smoke run on it, with legal, illegal and unknown names."""
    return gradient_variance.main(
        [
            f"--problem={mine}",
            f"--estimators={','.join(NAMES)},enumerated(),nonsense()",
            "--smoke",
            "--train_steps=6",
            f"--results_dir={mine.parent / 'results'}",
        ]
    )


def test_a_file_of_ones_own_appears_beside_the_built_in(folder):
    table = pd.read_csv(folder / "leaderboard.csv")
    assert list(table.estimator) == NAMES
    status = dict(zip(table.estimator, table.status, strict=True))
    assert status == dict.fromkeys(NAMES[:2], "no bias seen") | {"shrunk": "biased"}
    assert dict(zip(table.estimator, table["rank"], strict=True))["shrunk"] == 3
    assert np.all(table.microseconds > 0.0)
    (line,) = re.findall("  -  shrunk.*", (folder / "summary.txt").read_text())
    assert line.endswith("BIASED")


def test_the_results_are_in_the_metrics(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    table = pd.read_csv(folder / "leaderboard.csv")
    assert [row["estimator"] for row in metrics["leaderboard"]] == list(table.estimator)
    for name in ("variance", "rank", "snr"):
        np.testing.assert_allclose([row[name] for row in metrics["leaderboard"]], table[name])
    assert {row["estimator"] for row in metrics["slopes"]} == set(NAMES)


def test_refusals_say_why(folder):
    refused = json.loads((folder / "metrics.json").read_text())["refused"]
    assert set(refused) == {"enumerated()", "nonsense()"}
    assert (
        "infinitely many" in refused["enumerated()"]
        and "no estimator here" in refused["nonsense()"]
        and "The file's own: antithetic, shrunk" in refused["nonsense()"]
    )
    assert all(reason in (folder / "summary.txt").read_text() for reason in refused.values())


def test_results_are_plain_data_and_figures_come_from_them(folder):
    for name in ("leaderboard", "along", "sweep", "slopes"):
        from_csv = pd.read_csv(folder / f"{name}.csv")
        from_json = pd.DataFrame(json.loads((folder / f"{name}.json").read_text()))
        assert (
            list(from_csv.columns) == list(from_json.columns)
            and len(from_csv) == len(from_json) > 0
        )
    drawn = gradient_variance.plot(folder)
    assert {path.stem for path in drawn} == {"variance", "cost", "snr_against_k", "along_training"}
    assert all(path.stat().st_size > 5000 for path in drawn)


def test_figures_say_what_was_measured_and_in_which_unit(folder, monkeypatch):
    kept = {}

    def keep(figure, place, name):
        kept[name] = figure
        return place / name

    monkeypatch.setattr(common_figures, "save", keep)
    gradient_variance.plot(folder)
    (cost,) = kept["cost"].axes
    for name, figure in kept.items():
        (axes,) = figure.axes
        title = figure.get_suptitle() if name == "variance" else axes.get_title()
        assert "mine.py" in title and "N = 3" in title and "50 draws" in title and "95 %" in title
        if name == "snr_against_k":
            assert "importance-weighted bound" in title and "SNR" in axes.get_ylabel()
        else:
            assert "ELBO, K = 2" in title
            label = axes.get_xlabel() if name == "variance" else axes.get_ylabel()
            assert "variance of phi's gradient,\nsummed over elements (nats$^2$)" == label
    assert all(bars.has_xerr and bars.has_yerr for bars in cost.containers)
    assert len(cost.containers) == len(NAMES)
    for figure in kept.values():
        common_figures.plt.close(figure)


def test_a_file_is_told_k_and_objective_and_the_sweep_asks_for_others(folder, mine):
    problem = from_file(str(mine))
    made, _ = build(NAMES, problem, vj.objectives.elbo, 4)
    params = made["antithetic"].init_params(jax.random.key(0))
    assert lab.evaluations(made["antithetic"], params, {"z": ()}, problem.batch) == 4 * 3
    swept = pd.read_csv(folder / "sweep.csv")
    for name in NAMES:
        row = swept[(swept.estimator == name) & (swept.block == "phi")]
        assert list(row["at"]) == [2, 4] and list(row.evaluations) == [6, 12]
    # And only what was named is there
    assert list(build(["shrunk", "score()"], problem, vj.objectives.elbo, 2)[0]) == [
        "shrunk",
        "score()",
    ]
    both = job.prepare(gradient_variance.Config(problem=str(mine)))
    assert list(both.estimators) == [*problem.estimators, "antithetic", "shrunk"]
    assert both.unbiased == list(problem.estimators)


def test_a_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "other.py"

    def refused(words, text):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            job.prepare(gradient_variance.Config(problem=str(path)))

    refused(
        "must take .model, guide, num_samples, objective., but too many",
        re.sub(
            r"estimators\(model, guide, num_samples, objective\)", "estimators(model, guide)", FILE
        ),
    )
    refused(
        r"problem\(\) returned \(Model, Guide, Params, Batch\), but must return",
        FILE.replace("vj.Batch(x, jnp.arange(3)), exact", "vj.Batch(x, jnp.arange(3))"),
    )
    refused("returned NoneType", "def problem(): pass")
    refused(
        "must return a dict of vijax.Estimator",
        re.sub(r'return \{"antithetic".*', "return {'antithetic': pairs.estimate}", FILE),
    )
    refused("named as built-in ones are: ..score", FILE.replace('"shrunk":', '"score()":'))


def test_settings_that_would_be_ignored_or_cannot_be_are_refused():
    for words, args in (
        ("--table=wine chooses the data of --problem=logistic", ["--problem=vae", "--table=wine"]),
        ("would ignore --num_samples", ["--preset=snr_against_k", "--num_samples=5"]),
        ("would ignore --num_draws", ["--preset=snr_against_k", "--smoke", "--num_draws=7"]),
        ("--num_samples=0 must be at least 1", ["--num_samples=0"]),
        ("rounds=3: the 95 % interval", ["--rounds=3"]),
        ("--sweep=2,0 must be at least 1", ["--sweep=2,0"]),
        ("choose from", ["--preset=nothing"]),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            gradient_variance.main(args)


def test_a_run_that_is_cut_short_has_the_leaderboard(mine, tmp_path):
    """After the first point there are a report, a table and figures; the bound was said wrongly of
    no rule.
    """
    config = gradient_variance.smoke_settings(
        gradient_variance.Config(
            problem=str(mine), estimators=("pathwise()", "covariance(betas)"), smoke=True
        )
    )
    config = dataclasses.replace(config, train_steps=0, rounds=0)
    run = gradient_variance.run(config)
    first = next(run)
    run.close()
    assert first.metrics["step"] == 0 and list(first.tables["along"]["at"].unique()) == [0]
    assert "sweep" not in first.tables
    assert "pathwise()" in gradient_variance.report(first)
    assert "is for thermodynamic" in first.metrics["refused"]["covariance(betas)"]
    harness.write_json(tmp_path / "config.json", dataclasses.asdict(config))
    folders.write(tmp_path, first, {"status": "interrupted"}, gradient_variance.report(first))
    assert {path.stem for path in gradient_variance.plot(tmp_path)} == {"variance"}


def test_a_minibatch_of_a_table_is_measured_in_its_own_rows():
    """The same figures as of the whole table's gradient, which is zero elsewhere."""
    num_data, index = 50, jnp.array([3, 8])
    x = jax.random.normal(jax.random.key(0), (num_data, 2))
    model = vj.models.conjugate_normal(2)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(2), num_data)
    params = vj.Params(model.init(jax.random.key(1)), guide.init(jax.random.key(2)), ())
    batch = vj.Batch(x[index], index)
    problem = Problem(model, guide, params, batch, num_data)
    made, _ = build(["pathwise()"], problem, vj.objectives.elbo, 2)
    names = unbiased(made, problem)
    one = job.Job(problem, made, names, {}, made["pathwise()"], made["pathwise()"])
    place = measuring.view(one, params)
    assert isinstance(place.phi, rows.Rows)
    assert {leaf.shape for leaf in jax.tree.leaves(place.phi)} == {(2, 2)}
    inside, whole = (
        lab.compare(jax.random.key(3), made, where, batch, num_draws=50, rounds=0)
        for where in (place, params)
    )
    for name in ("variance", "variance_error", "snr"):
        np.testing.assert_allclose(getattr(inside, name), getattr(whole, name), rtol=1e-4)
    # An exact gradient of the whole table is looked at in the same rows
    gradient = params._replace(theta=model.init(jax.random.key(1)))
    known = problem._replace(exact=lambda params: gradient)
    seen = measuring.reference(
        jax.random.key(0), gradient_variance.Config(), one._replace(problem=known), params, place
    )
    np.testing.assert_array_equal(
        seen.gradient.phi.phi["z"]["loc"], gradient.phi["z"]["loc"][index]
    )
    by_hand = one._replace(judge=made["pathwise()"]._replace(locate=None))
    assert not isinstance(measuring.view(by_hand, params).phi, rows.Rows)


def test_a_gradient_known_at_one_point_is_not_used_elsewhere(mine):
    problem = from_file(str(mine))
    assert problem.exact is not None
    assert problem.exact(problem.params) is not None
    # There a measured one takes its place
    assert problem.exact(jax.tree.map(lambda leaf: leaf + 1.0, problem.params)) is None
    with pytest.raises(ValueError, match="neither a file nor one of"):
        from_file("no_such_problem")


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_every_problem_builds_its_own_list(name):
    problem = PROBLEMS[name]()
    made, refused = build(problem.estimators, problem, vj.objectives.elbo, 2)
    assert not refused and len(made) >= 6 and problem.trainer in made
    parts = parts_of(problem.guide)
    assert all(rule in every_name(problem.guide) for rule in problem.estimators), parts


def test_all_legal_is_every_name_that_is_not_refused():
    problem = PROBLEMS["mixture"]()
    made, refused = build(["all-legal"], problem, vj.objectives.elbo, 2)
    assert (
        set(made) | set(refused) == set(every_name(problem.guide))
        and "c=disarm_tree()+z=pathwise()" in made
    )
    assert "no Reparameterized trait" in refused["pathwise()"] and all(
        len(reason) > 40 for reason in refused.values()
    )
    assert "c=importance_without_replacement(normalized=True)+z=pathwise()" in made


@pytest.mark.parametrize("name", ["conjugate_normal", "hierarchical", "sbn", "logistic"])
def test_exact_gradients_are_exact(name):
    """Against the problem's own trainer: no alarm; a reference half as large again raises one."""
    problem = PROBLEMS[name]() if name != "logistic" else PROBLEMS[name]("iris")
    made, _ = build([problem.trainer], problem, vj.objectives.elbo, 2)
    trainer = made[problem.trainer]
    params = problem.params._replace(control=trainer.init_params(jax.random.key(0)).control)
    params = params._replace(phi=jax.tree.map(lambda leaf: leaf + 0.1, params.phi))
    assert problem.exact is not None
    exact = problem.exact(params._replace(control=()))
    state = trainer.init(jax.random.key(0), params)
    for off, flagged in ((1.0, False), (1.5, True)):
        reference = lab.Reference(jax.tree.map(lambda g, off=off: off * g, exact))
        blocks = lab.gradient_report(
            jax.random.key(1),
            trainer,
            params,
            state,
            problem.batch,
            num_draws=1000,
            reference=reference,
        ).blocks
        assert bool(np.any(blocks.p_value[: blocks.block.index("phi") + 1] < 1e-4)) == flagged


def test_the_reference_is_measured_by_an_unbiased_estimator_or_not_at_all(mine):
    own, biased = from_file(str(mine)), "doubly_reparameterized(path_weights.sticking())"
    # A biased name, alone or beside an unbiased list; a legal one under another bound
    for problem, objective, name, found in (
        (own._replace(estimators=()), vj.objectives.elbo, biased, False),
        (own, vj.objectives.elbo, biased, True),
        (own, vj.objectives.elbo, "shrunk", True),
        (PROBLEMS["mixture"](), vj.objectives.iwae, "score()", True),
    ):
        made, _ = build([name], problem, objective, 2)
        chosen = judge(made, problem, objective, 2)
        assert (chosen is not None) == found
        assert name == "score()" or chosen is not made[name]
    with pytest.raises(ValueError, match="write block=rule for every one of c, z"):
        estimator("c=enumerated()+pathwise()", PROBLEMS["mixture"](), vj.objectives.elbo, 2)


def test_lists_on_the_command_line_split_outside_parentheses():
    config = harness.parse(
        gradient_variance.Config, "", ["--estimators=sum_and_sample(1, stochastic=True),score()"]
    )
    assert config.estimators == ("sum_and_sample(1, stochastic=True)", "score()")
