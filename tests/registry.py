"""What the batteries run over: one entry here is all that something new needs to be tested.

A family is an entry of `FAMILIES` (family_fixtures.py), a model of `MODELS` (model_fixtures.py), an
objective of `OBJECTIVES` (below), an estimator of `CASES` (cases.py), and a rule a line of the
catalogue, vijax/catalogue.py, from which the README's table is made too. test_registry.py says
which public name has no entry.
"""

from cases import CASES, HALF, TWO
from family_fixtures import FAMILIES
from model_fixtures import MODELS

from vijax import objectives
from vijax.catalogue import BETAS
from vijax.catalogue import CATALOGUE as RULES

__all__ = ["CASES", "FAMILIES", "MODELS", "OBJECTIVES", "RULES"]

OBJECTIVES = {
    objective.name: objective
    for objective in (
        objectives.elbo,
        objectives.iwae,
        HALF,
        TWO,
        objectives.jackknife(),
        objectives.cubo(),
        objectives.exp_cubo(reference=0.3),
        objectives.thermodynamic(BETAS),
    )
}
"""By name; they all have a value at 2 samples."""
