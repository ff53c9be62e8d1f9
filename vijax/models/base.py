"""How a model is put together: global latents, local latents, or both.

A log-density is one number, or a dict {name: term} of the terms whose sum it is: `rules.by_terms`
gives credit by their names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict

from vijax.inference import Model, Prior
from vijax.shapes import total_and_terms
from vijax.types import Key, LogDensity, PyTree, Scalar


def latent_model(
    init: Callable[[Key], PyTree],
    log_joint: Callable[[PyTree, PyTree, PyTree], LogDensity],
    *,
    prior: Prior | None = None,
    simulate: Callable[..., Any] | None = None,
    log_evidence: Callable[..., Scalar] | None = None,
    posterior: Callable[..., PyTree] | None = None,
) -> Model:
    """A model with one local latent z_i per datum: log p(x_i, z_i | theta) = log_joint(theta, z,
    x), one datum, one sample.

    Args:
      init: key -> theta (`()` if nothing is learned).
      prior: p(z | theta) as a family, `locate(theta)`.
      simulate: (key, theta, num_data) -> (z, x).
      log_evidence: (theta, x) -> exact log p(x_i) of one datum.
      posterior: (theta, x) -> lam of the exact p(z_i | x_i).
    """

    def log_local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
        return _checked(log_joint(theta, z, x), "log_joint")

    local_prior = (
        None if prior is None else Prior(prior.family, lambda theta, w: prior.locate(theta))
    )
    return Model(
        init=init,
        log_prior=_no_prior,
        log_local=log_local,
        latents=("z",),
        priors=_stated(z=local_prior),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
    )


def bayes_model(
    log_prior: Callable[[PyTree, PyTree], LogDensity],
    log_lik: Callable[[PyTree, PyTree, PyTree], LogDensity],
    *,
    init: Callable[[Key], PyTree] = lambda key: (),
    prior: Prior | None = None,
    simulate: Callable[..., Any] | None = None,
    log_evidence: Callable[..., Scalar] | None = None,
    posterior: Callable[..., PyTree] | None = None,
) -> Model:
    """A model with one global latent w: log p(w | theta) = log_prior(theta, w), log p(x_i | w) =
    log_lik(theta, w, x).

    Args:
      prior: p(w | theta) as a family.
      log_evidence: (theta, x) -> exact log-evidence of the whole data set, x leaves [N, ...].
      posterior: (theta, x) -> lam of the exact posterior given all data.
    """

    def log_local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
        return _checked(log_lik(theta, w, x), "log_lik")

    return Model(
        init=init,
        log_prior=log_prior,
        log_local=log_local,
        latents=("w",),
        priors=_stated(w=prior),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
    )


def hierarchical_model(
    log_prior: Callable[[PyTree, PyTree], LogDensity],
    log_local: Callable[[PyTree, PyTree, PyTree, PyTree], LogDensity],
    *,
    init: Callable[[Key], PyTree] = lambda key: (),
    prior_w: Prior | None = None,
    prior_z: Prior | None = None,
    simulate: Callable[..., Any] | None = None,
    log_evidence: Callable[..., Scalar] | None = None,
    posterior: Callable[..., PyTree] | None = None,
) -> Model:
    """A model with both: log p(w | theta) and log p(z_i, x_i | w, theta) = log_local(theta, w, z,
    x).

    Args:
      prior_z: p(z | w, theta) as a family, `locate(theta, w)`.
      log_evidence: (theta, x) -> exact log-evidence of the whole data set.
      posterior: (theta, x) -> exact lam given all data.
    """

    def checked(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
        return _checked(log_local(theta, w, z, x), "log_local")

    return Model(
        init=init,
        log_prior=log_prior,
        log_local=checked,
        latents=("w", "z"),
        priors=_stated(w=prior_w, z=prior_z),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
    )


def _stated(**priors: Prior | None) -> Mapping[str, Prior]:
    return FrozenDict({name: prior for name, prior in priors.items() if prior is not None})


def _checked(value: LogDensity, what: str) -> LogDensity:
    total_and_terms(value, what)
    return value


def _no_prior(theta: PyTree, w: PyTree) -> Scalar:
    return jnp.zeros(())
