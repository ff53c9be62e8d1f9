"""The README's programs run as printed, and its two commands are the ones that CI reads."""

import pathlib
import re

import jax.numpy as jnp
import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
# That one is run in test_gradient_variance.py
PROGRAMS = [block for block in BLOCKS if "def problem()" not in block]


@pytest.mark.parametrize("source", PROGRAMS, ids=["estimator_by_hand", "low_level_door"])
def test_program_runs_as_printed(source):
    names = {}
    exec(compile(source, str(README), "exec"), names)
    if "result" in names:
        assert (
            jnp.max(jnp.abs(names["result"].params.theta["shift"] - names["x"].mean(axis=0))) < 0.1
        )
        history = names["result"].history
        assert history.loss[-1] < history.loss[0]
    else:
        assert names["gradient"].shape == (3,) and bool(jnp.all(jnp.isfinite(names["gradient"])))


def test_the_two_commands_stand_on_a_line_each():
    commands = re.findall(
        r"^test -d \.venv \|\| python3 -m venv.*$", README.read_text(), flags=re.MULTILINE
    )
    assert [("experiments.vae" in c, "pytest" in c) for c in commands] == [
        (True, False),
        (False, True),
    ]
