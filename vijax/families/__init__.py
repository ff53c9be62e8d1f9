"""Variational families q(z; lam). `product` and `chain` build larger ones; `family` your own.

What a family can do beyond drawing are its traits, small records keyed by their type.
"""

from vijax.families.base import (
    family,
    lam_like,
    log_probs,
    mean,
    need,
    sample,
    traits_of,
    transports,
    variance,
    with_traits,
    z_like,
)
from vijax.families.discrete import bernoulli, categorical
from vijax.families.kinds import (
    BernoulliSites,
    CategoricalSites,
    GammaSites,
    NormalMoments,
    Pairs,
    WeakDerivative,
)
from vijax.families.normal import cholesky, diag_normal, from_cholesky, from_covariance, full_normal
from vijax.families.positive import exponential, gamma, poisson
from vijax.families.product import chain, product
from vijax.families.simplex import beta, dirichlet
from vijax.families.student_t import student_t
from vijax.families.traits import (
    Blocks,
    Density,
    Entropy,
    FiniteSupport,
    IndependentBlocks,
    Inverse,
    Kl,
    Moments,
    Natural,
    Pushforward,
    Reparameterized,
    UniformNoise,
    finite_support,
)
from vijax.families.transformed import over, transformed
from vijax.families.von_mises import von_mises

__all__ = [
    "BernoulliSites",
    "Blocks",
    "CategoricalSites",
    "Density",
    "Entropy",
    "FiniteSupport",
    "GammaSites",
    "IndependentBlocks",
    "Inverse",
    "Kl",
    "Moments",
    "Natural",
    "NormalMoments",
    "Pairs",
    "Pushforward",
    "Reparameterized",
    "UniformNoise",
    "WeakDerivative",
    "bernoulli",
    "beta",
    "categorical",
    "chain",
    "cholesky",
    "diag_normal",
    "dirichlet",
    "exponential",
    "family",
    "finite_support",
    "from_cholesky",
    "from_covariance",
    "full_normal",
    "gamma",
    "lam_like",
    "log_probs",
    "mean",
    "need",
    "over",
    "poisson",
    "product",
    "sample",
    "student_t",
    "traits_of",
    "transformed",
    "transports",
    "variance",
    "von_mises",
    "with_traits",
    "z_like",
]
