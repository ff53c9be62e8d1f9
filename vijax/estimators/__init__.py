"""Estimators: what binds a model, a guide, objectives and rules into a stochastic gradient."""

from vijax.estimators.bind import estimator, estimator_from
from vijax.estimators.in_lam import in_lam
from vijax.estimators.sleep import sleep
from vijax.estimators.split import split
from vijax.estimators.target import EVALUATION, log_joint, log_local, log_prior

__all__ = [
    "EVALUATION",
    "estimator",
    "estimator_from",
    "in_lam",
    "log_joint",
    "log_local",
    "log_prior",
    "sleep",
    "split",
]
