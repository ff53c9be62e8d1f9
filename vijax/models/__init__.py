"""Models: log-joints of one datum and one sample, with `simulate` and the exact evidence and
posterior where known.
"""

from vijax.models.base import bayes_model, hierarchical_model, latent_model
from vijax.models.bayesian_gaussian_mixture import bayesian_gaussian_mixture
from vijax.models.conjugate_normal import conjugate_normal
from vijax.models.eight_schools import eight_schools, eight_schools_data
from vijax.models.gaussian_mixture import gaussian_mixture
from vijax.models.hierarchical_normal import hierarchical_normal
from vijax.models.linear_regression import linear_regression
from vijax.models.logistic_regression import logistic_regression
from vijax.models.mixture_of_factor_analyzers import mixture_of_factor_analyzers
from vijax.models.normal_prior import isotropic_normal_prior
from vijax.models.probabilistic_pca import probabilistic_pca
from vijax.models.sigmoid_belief_net import recognition_net, sigmoid_belief_net
from vijax.models.traits import Conditionals, SufficientStatistics
from vijax.models.vae import Likelihood, Mlp, bernoulli_pixels, normal_pixels, vae

__all__ = [
    "Conditionals",
    "Likelihood",
    "Mlp",
    "SufficientStatistics",
    "bayes_model",
    "bayesian_gaussian_mixture",
    "bernoulli_pixels",
    "conjugate_normal",
    "eight_schools",
    "eight_schools_data",
    "gaussian_mixture",
    "hierarchical_model",
    "hierarchical_normal",
    "isotropic_normal_prior",
    "latent_model",
    "linear_regression",
    "logistic_regression",
    "mixture_of_factor_analyzers",
    "normal_pixels",
    "probabilistic_pca",
    "recognition_net",
    "sigmoid_belief_net",
    "vae",
]
