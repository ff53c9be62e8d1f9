"""Models: log-joints of one datum and one sample, with `simulate` and the exact evidence and posterior where known."""

from vijax.models.base import bayes_model, hierarchical_model, latent_model

__all__ = ["bayes_model", "hierarchical_model", "latent_model"]
