"""Gradient rules: how one expectation under q is differentiated. One idea a file.

`rule.surrogate(key, family, lam, integrand, objective=..., num_samples=K)` is a scalar whose value is the Monte Carlo
estimate and whose derivative is the gradient estimator; use it bare under `jax.grad`, or let `vijax.estimator` bind it.
"""

from vijax.rules.base import draw, evaluate, evaluate_at, from_gradient, mean_aux, rule
from vijax.rules.closed_form import closed_form_entropy, closed_form_kl
from vijax.rules.doubly_reparameterized import doubly_reparameterized
from vijax.rules.enumerated import enumerated
from vijax.rules.mixed import Rules, as_rule, mixed
from vijax.rules.pathwise import pathwise
from vijax.rules.score import score

__all__ = [
    "Rules",
    "as_rule",
    "closed_form_entropy",
    "closed_form_kl",
    "doubly_reparameterized",
    "draw",
    "enumerated",
    "evaluate",
    "evaluate_at",
    "from_gradient",
    "mean_aux",
    "mixed",
    "pathwise",
    "rule",
    "score",
]
