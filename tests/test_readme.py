"""The README's programs run as printed, its two commands are the ones that CI reads, and what it
says of where things go is true.
"""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# The one with a `problem()` is run in test_gradient_variance.py
PROGRAMS = [block for block in BLOCKS if "def problem()" not in block]


def run(source):
    names = {}
    exec(compile(source, "README.md", "exec"), names)
    return names


def test_there_are_six_programs():
    assert len(PROGRAMS) == 6


@pytest.fixture(scope="module")
def programs():
    return [run(source) for source in PROGRAMS]


def test_the_estimator_by_hand_finds_the_maximum_of_the_evidence(programs):
    result, x = programs[0]["result"], programs[0]["x"]
    assert jnp.max(jnp.abs(result.params.theta["shift"] - x.mean(axis=0))) < 0.1
    assert result.history.loss[-1] < result.history.loss[0]


def test_the_low_level_door_gives_a_gradient(programs):
    gradient = programs[1]["gradient"]
    assert gradient.shape == (3,) and bool(jnp.all(jnp.isfinite(gradient)))


def test_the_loop_is_stopped_resumed_and_taken_by_hand(programs):
    names = programs[2]
    first, result = names["first"], names["result"]
    assert 200 <= first.num_steps < 1000 and result.num_steps == first.num_steps + 300
    assert bool(names["info"].finite) and result.history.loss[-1] < first.history.loss[0]
    assert abs(names["loss"] / names["info"].loss - 1.0) < 0.05


def test_em_climbs_and_the_encoders_gap_is_told_from_the_familys(programs):
    names = programs[3]
    log_likelihood = -names["result"].history.loss
    assert np.all(np.diff(log_likelihood) > -1e-3) and np.ptp(log_likelihood) > 100.0
    gaps, seen = names["gaps"], names["seen"]
    whole = gaps.evidence.log_evidence - gaps.bound.value
    parts = gaps.approximation.value + gaps.amortization.value
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    assert np.mean(gaps.amortization.value) > 10.0 > 1.0 > np.mean(gaps.approximation.value) > 0.0
    assert not np.all(seen.reliable)


def test_the_constrained_posterior_is_right(programs):
    """The mean within a tenth of a posterior deviation: the prior hardly matters for 200 data."""
    w, y = programs[4]["draws"].w, programs[4]["y"]
    deviation = y.std() / 200**0.5
    assert bool(jnp.all(w["sigma"] > 0.0))
    assert abs(float(w["mu"].mean() - y.mean())) < 0.2 * float(deviation)
    assert abs(float(w["sigma"].mean() / y.std()) - 1.0) < 0.03
    assert 0.8 < float(w["mu"].std() / deviation) < 1.2


def test_the_two_commands_stand_on_a_line_each():
    commands = re.findall(r"^test -d \.venv \|\| python3 -m venv.*$", README, flags=re.MULTILINE)
    assert [("experiments.vae" in c, "pytest" in c) for c in commands] == [
        (True, False),
        (False, True),
    ]


def test_how_it_is_built_is_short_and_names_what_is_there():
    section = README.split("## How it is built\n")[1].split("\n## ")[0]
    assert len(section.strip().splitlines()) <= 40
    named = re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", section)
    assert len(named) > 10
    for name in named:
        assert (ROOT / "vijax" / name).exists(), name


def test_the_files_to_copy_exist():
    for name in re.findall(r"`((?:vijax|tests|experiments)/[\w/]+\.py)`", README):
        assert (ROOT / name).exists(), name


def test_a_family_of_ones_own_is_checked(programs):
    assert all(z < 6.0 for z in programs[5]["properties"].values())
