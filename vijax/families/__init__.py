"""Variational families q(z; lam). `product` and `chain` build larger ones; `family` makes your own."""

from vijax.families.base import family, lam_like, z_like
from vijax.families.discrete import bernoulli, categorical
from vijax.families.normal import cholesky, diag_normal, from_covariance, full_normal
from vijax.families.product import chain, product

__all__ = [
    "bernoulli",
    "categorical",
    "chain",
    "cholesky",
    "diag_normal",
    "family",
    "from_covariance",
    "full_normal",
    "lam_like",
    "product",
    "z_like",
]
