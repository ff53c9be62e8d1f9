"""Published numbers and closed forms beside ours: each module asks one question of the literature
on gradient estimators.

A module has `run(key, smoke=...) -> harness.Outcome`, whose metrics hold the table `claims`, and
`plot(metrics, arrays, folder) -> list[Path]`.
"""

from collections.abc import Mapping
from types import ModuleType

from experiments.gradient_variance.reproductions import (
    bernoulli_toys,
    closed_form_variances,
    logistic_along_training,
    sbn_along_training,
    snr_against_k,
    sticking_the_landing,
)

REPRODUCTIONS: Mapping[str, ModuleType] = {
    "snr_against_k": snr_against_k,
    "closed_form_variances": closed_form_variances,
    "bernoulli_toys": bernoulli_toys,
    "sticking_the_landing": sticking_the_landing,
    "logistic_along_training": logistic_along_training,
    "sbn_along_training": sbn_along_training,
}
