"""vijax: variational inference research in JAX.

`estimator(model, guide, objective=..., rules=..., num_samples=..., num_data=...)` binds any
objective, gradient rule and family that are legal together; `fit` optimises it, `lab` measures it,
`diagnostics` scores the result.
"""

from vijax import (
    baselines,
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
    rowwise,
    rules,
)
from vijax.estimators import estimator, split
from vijax.fit import FitResult, NonFiniteError, fit
from vijax.types import (
    Batch,
    Estimate,
    Estimator,
    Family,
    Guide,
    Model,
    Params,
    Prior,
    Rule,
    Sample,
)
from vijax.wake_sleep import sleep

__all__ = [
    "Batch",
    "Estimate",
    "Estimator",
    "Family",
    "FitResult",
    "Guide",
    "Model",
    "NonFiniteError",
    "Params",
    "Prior",
    "Rule",
    "Sample",
    "baselines",
    "densities",
    "diagnostics",
    "estimator",
    "families",
    "fit",
    "guides",
    "lab",
    "models",
    "networks",
    "noise",
    "objectives",
    "path_weights",
    "rowwise",
    "rules",
    "sleep",
    "split",
]
