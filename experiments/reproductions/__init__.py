"""Published numbers and closed forms beside ours: each module asks one question of the literature on gradient estimators.

A module has `run(key, smoke=...) -> harness.Outcome`, whose metrics hold the table `claims`, and
`plot(metrics, arrays, folder) -> list[Path]`.
"""

from collections.abc import Mapping
from types import ModuleType

from experiments.reproductions import closed_form_variances, sticking_the_landing

REPRODUCTIONS: Mapping[str, ModuleType] = {
    "closed_form_variances": closed_form_variances,
    "sticking_the_landing": sticking_the_landing,
}
