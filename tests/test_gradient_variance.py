"""The command: names, reasons of refusals, exact gradients of its problems, files of one's own,
what it writes.
"""

import json
import pathlib
import re

import jax
import numpy as np
import pandas as pd
import pytest

import vijax as vj
from experiments.common import harness
from experiments.gradient_variance import __main__ as gradient_variance
from experiments.gradient_variance.estimators import build, estimator, every_name, judge, parts_of
from experiments.gradient_variance.figures import BIASED
from experiments.gradient_variance.problems import PROBLEMS, from_file
from vijax import lab

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
FILE = next(
    block
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    if "def problem()" in block
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One smoke run on the file that the README shows, with a legal, an illegal and an unknown
    name.
    """
    place = tmp_path_factory.mktemp("own")
    (place / "mine.py").write_text(FILE)
    return gradient_variance.main(
        [
            f"--problem={place / 'mine.py'}",
            "--estimators=pathwise(),enumerated(),nonsense()",
            "--smoke",
            f"--results_dir={place / 'results'}",
        ]
    )


def test_a_file_of_ones_own_appears_beside_the_built_in(folder):
    table = pd.read_csv(folder / "leaderboard.csv")
    assert list(table.estimator) == ["pathwise()", "antithetic", "shrunk"]
    biased = dict(zip(table.estimator, table.p_value < BIASED, strict=True))
    assert biased == {"pathwise()": False, "antithetic": False, "shrunk": True}
    assert np.all(table.microseconds > 0.0)


def test_refusals_say_why(folder):
    refused = json.loads((folder / "metrics.json").read_text())["refused"]
    assert set(refused) == {"enumerated()", "nonsense()"}
    assert (
        "infinitely many" in refused["enumerated()"]
        and "no estimator here" in refused["nonsense()"]
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


def test_a_gradient_known_at_one_point_is_not_used_elsewhere(folder):
    problem = from_file(str(folder.parents[2] / "mine.py"))
    assert problem.exact is not None
    assert problem.exact(problem.params) is not None
    # There a measured one takes its place
    assert problem.exact(jax.tree.map(lambda leaf: leaf + 1.0, problem.params)) is None
    with pytest.raises(ValueError, match="neither a file nor one of"):
        from_file("no_such_problem")
    with pytest.raises(ValueError, match="choose from"):
        gradient_variance.main(["--preset=nothing"])


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_every_problem_builds_its_own_list(name):
    problem = PROBLEMS[name]("breast_cancer")
    made, refused = build(problem.estimators, problem, vj.objectives.elbo, 2)
    assert not refused and len(made) >= 6 and problem.trainer in made
    parts = parts_of(problem.guide)
    assert all(rule in every_name(problem.guide) for rule in problem.estimators), parts


def test_all_legal_is_every_name_that_is_not_refused():
    problem = PROBLEMS["mixture"]("")
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
    problem = PROBLEMS[name]("iris")
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


def test_the_reference_is_measured_by_an_unbiased_estimator_or_not_at_all(folder):
    own = from_file(str(folder.parents[2] / "mine.py"))
    for problem, objective, found in (
        (own, vj.objectives.elbo, False),
        (PROBLEMS["mixture"](""), vj.objectives.iwae, True),
    ):
        names = (
            ["doubly_reparameterized(path_weights.sticking())"] if problem is own else ["score()"]
        )
        made, _ = build(names, problem, objective, 2)
        assert (judge(made, problem, objective, 2) is not None) == found
    with pytest.raises(ValueError, match="write block=rule for every one of c, z"):
        estimator("c=enumerated()+pathwise()", PROBLEMS["mixture"](""), vj.objectives.elbo, 2)


def test_lists_on_the_command_line_split_outside_parentheses():
    config = harness.parse(
        gradient_variance.Config, "", ["--estimators=sum_and_sample(1, stochastic=True),score()"]
    )
    assert config.estimators == ("sum_and_sample(1, stochastic=True)", "score()")
