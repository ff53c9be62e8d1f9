"""vijax: variational inference research in JAX.

`estimator(model, guide, objective=..., rules=..., num_samples=..., num_data=...)` binds any
objective, gradient rule and family that are legal together; `fit` runs an algorithm such as
`descent(estimator, optimizer)`, `lab` measures the gradient, `draws` and `diagnostics` score the
result.
"""

from vijax import (
    algorithms,
    baselines,
    bijectors,
    densities,
    diagnostics,
    families,
    guides,
    lab,
    models,
    networks,
    noise,
    objectives,
    path_weights,
    rows,
    rules,
    supports,
    testing,
)
from vijax.algorithms import descent, rowwise
from vijax.draws import draws
from vijax.estimators import estimator, estimator_from, in_lam, sleep, split
from vijax.host import on_host
from vijax.inference import Algorithm, Draws, Estimate, Estimator, Guide, Info, Model, Prior
from vijax.optimize import (
    BatchError,
    Checkpoint,
    FitResult,
    NonFiniteError,
    Progress,
    Replay,
    Stateful,
    fit,
    restore,
    save,
)
from vijax.rules import StepWarning, expect
from vijax.types import (
    Aux,
    Batch,
    Family,
    Objective,
    Params,
    Q,
    Requirements,
    Rule,
    Sample,
    Setting,
)

__version__ = "0.4.0"

__all__ = [
    "Algorithm",
    "Aux",
    "Batch",
    "BatchError",
    "Checkpoint",
    "Draws",
    "Estimate",
    "Estimator",
    "Family",
    "FitResult",
    "Guide",
    "Info",
    "Model",
    "NonFiniteError",
    "Objective",
    "Params",
    "Prior",
    "Progress",
    "Q",
    "Replay",
    "Requirements",
    "Rule",
    "Sample",
    "Setting",
    "Stateful",
    "StepWarning",
    "algorithms",
    "baselines",
    "bijectors",
    "densities",
    "descent",
    "diagnostics",
    "draws",
    "estimator",
    "estimator_from",
    "expect",
    "families",
    "fit",
    "guides",
    "in_lam",
    "lab",
    "models",
    "networks",
    "noise",
    "objectives",
    "on_host",
    "path_weights",
    "restore",
    "rows",
    "rowwise",
    "rules",
    "save",
    "sleep",
    "split",
    "supports",
    "testing",
]
