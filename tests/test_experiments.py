"""The scripts list themselves, each with its question, and whatever is no script is seen to be a
part of one.
"""

from experiments.__main__ import ROOT, listing, scripts

SCRIPTS = {
    "experiments.amortization",
    "experiments.benchmarks.bayes",
    "experiments.benchmarks.phi_tables",
    "experiments.benchmarks.refinement",
    "experiments.benchmarks.rules",
    "experiments.benchmarks.vae",
    "experiments.compare",
    "experiments.em_mixture",
    "experiments.gradient_variance",
    "experiments.sbn",
    "experiments.stochastic_vi",
    "experiments.vae",
}


def test_every_script_is_listed_with_its_question():
    found = scripts()
    assert set(found) == SCRIPTS
    assert all(line.endswith("?") for line in found.values())  # one line holds all of it
    assert all(name in listing() and line in listing() for name, line in found.items())


def test_what_is_no_script_lies_with_its_script_or_in_common():
    """A file that is neither stands out."""
    wrong = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        owners = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        if path.stem not in ("__init__", "__main__") and "common" not in parts:
            if not SCRIPTS & set(owners):
                wrong.append(".".join(parts))
    assert not wrong
