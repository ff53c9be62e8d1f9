"""Variational families q(z; lam). `product` and `chain` build larger ones; `family` makes your
own.
"""

from vijax.families.base import family, lam_like, z_like
from vijax.families.discrete import bernoulli, categorical
from vijax.families.normal import cholesky, diag_normal, from_covariance, full_normal
from vijax.families.positive import exponential, gamma, poisson
from vijax.families.product import chain, product
from vijax.families.simplex import beta, dirichlet
from vijax.families.student_t import student_t
from vijax.families.von_mises import von_mises

__all__ = [
    "bernoulli",
    "beta",
    "categorical",
    "chain",
    "cholesky",
    "diag_normal",
    "dirichlet",
    "exponential",
    "family",
    "from_covariance",
    "full_normal",
    "gamma",
    "lam_like",
    "poisson",
    "product",
    "student_t",
    "von_mises",
    "z_like",
]
