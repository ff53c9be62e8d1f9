"""Gradient rules: how one expectation under q is differentiated. One idea a file.

`rule.surrogate(key, q, integrand, setting)` is a scalar whose value is the Monte Carlo estimate and
whose derivative is the gradient estimator: let `vijax.estimator` bind it, or use it bare under
`jax.grad` through `vijax.expect`.
"""

from vijax.families import log_probs
from vijax.rules.arsm import arsm
from vijax.rules.bare import expect
from vijax.rules.base import (
    draw,
    evaluate,
    evaluate_at,
    from_gradient,
    keys,
    learned_gradient,
    live_weights,
    mean_aux,
    minus_direct_term,
    no_aux,
    rule,
    spare_key,
    stopped,
    zero_valued,
)
from vijax.rules.categorical_disarm import disarm_importance, disarm_stick_breaking, disarm_tree
from vijax.rules.closed_form import closed_form_entropy, closed_form_kl
from vijax.rules.coupled import arm, arms, disarm
from vijax.rules.double_control_variates import double_control_variates
from vijax.rules.doubly_reparameterized import doubly_reparameterized
from vijax.rules.enumerated import enumerated
from vijax.rules.fitted_score_term import fitted_score_term
from vijax.rules.generalized_doubly_reparameterized import generalized_doubly_reparameterized
from vijax.rules.generalized_reparameterization import (
    generalized_reparameterization,
    log_standardized,
    marsaglia_tsang,
)
from vijax.rules.integrands import StepWarning, check_steps
from vijax.rules.lax import lax
from vijax.rules.local_expectation import local_expectation
from vijax.rules.measure_valued import measure_valued
from vijax.rules.mixed import Rules, as_rule, mixed
from vijax.rules.muprop import muprop
from vijax.rules.pathwise import pathwise
from vijax.rules.quadratic_control import by_path, by_score, quadratic_control
from vijax.rules.rebar import rebar
from vijax.rules.relax import relax
from vijax.rules.relaxed import (
    gapped_straight_through,
    gumbel_rao,
    gumbel_softmax,
    reinmax,
    straight_through,
    straight_through_gumbel,
)
from vijax.rules.relaxed_scores import concrete, to_mean_field
from vijax.rules.rodeo import rodeo
from vijax.rules.score import score
from vijax.rules.score_per_block import by_substitution, by_terms, score_per_block
from vijax.rules.sum_and_sample import sum_and_sample
from vijax.rules.surfaces import learned_quadratic, taylor
from vijax.rules.wake import covariance, wake
from vijax.rules.without_replacement import importance_without_replacement, unordered_set

__all__ = [
    "Rules",
    "StepWarning",
    "arm",
    "arms",
    "arsm",
    "as_rule",
    "by_path",
    "by_score",
    "by_substitution",
    "by_terms",
    "check_steps",
    "closed_form_entropy",
    "closed_form_kl",
    "concrete",
    "covariance",
    "disarm",
    "disarm_importance",
    "disarm_stick_breaking",
    "disarm_tree",
    "double_control_variates",
    "doubly_reparameterized",
    "draw",
    "enumerated",
    "evaluate",
    "evaluate_at",
    "expect",
    "fitted_score_term",
    "from_gradient",
    "gapped_straight_through",
    "generalized_doubly_reparameterized",
    "generalized_reparameterization",
    "gumbel_rao",
    "gumbel_softmax",
    "importance_without_replacement",
    "keys",
    "learned_gradient",
    "lax",
    "learned_quadratic",
    "live_weights",
    "local_expectation",
    "log_probs",
    "log_standardized",
    "marsaglia_tsang",
    "mean_aux",
    "measure_valued",
    "minus_direct_term",
    "mixed",
    "muprop",
    "no_aux",
    "pathwise",
    "quadratic_control",
    "rebar",
    "reinmax",
    "relax",
    "rodeo",
    "rule",
    "score",
    "score_per_block",
    "spare_key",
    "stopped",
    "straight_through",
    "straight_through_gumbel",
    "sum_and_sample",
    "taylor",
    "to_mean_field",
    "unordered_set",
    "wake",
    "zero_valued",
]
