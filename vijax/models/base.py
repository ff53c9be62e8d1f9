"""How a model is put together: global latents, local latents, or both.

A log-density is one number, or a dict {name: term} of the terms whose sum it is: `rules.by_terms`
gives credit by their names. A prior that is a member of a family is stated once, as a `Prior`, and
the log-joint is made of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict

from vijax.families import traits_of
from vijax.inference import Model, Prior
from vijax.shapes import add_terms, total_and_terms
from vijax.types import Key, LogDensity, PyTree, Scalar


def latent_model(
    init: Callable[[Key], PyTree],
    log_joint: Callable[[PyTree, PyTree, PyTree], LogDensity] | None = None,
    *,
    log_lik: Callable[[PyTree, PyTree, PyTree], LogDensity] | None = None,
    prior: Prior | None = None,
    simulate: Callable[..., Any] | None = None,
    log_evidence: Callable[..., Scalar] | None = None,
    posterior: Callable[..., PyTree] | None = None,
    check: Callable[[PyTree], None] | None = None,
    traits: Sequence[Any] = (),
) -> Model:
    """A model with one local latent z_i per datum, one datum and one sample: log p(x_i, z_i |
    theta) as `log_joint(theta, z, x)`, or as `log_lik` and `prior`.

    Args:
      init: key -> theta (`()` if nothing is learned).
      log_lik: (theta, z, x) -> log p(x | z, theta).
      prior: p(z | theta) as a family, `locate(theta)`.
      simulate: (key, theta, num_data) -> (z, x).
      log_evidence: (theta, x) -> exact log p(x_i) of one datum.
      posterior: (theta, x) -> lam of the exact p(z_i | x_i).
      check: concrete data, leaves [B, ...] -> None, or ValueError.
      traits: what else it can do, records from `vijax.models.traits`.

    Raises:
      ValueError: unless it is the log-joint alone, or the likelihood with the prior.
    """
    stated = None if prior is None else Prior(prior.family, lambda theta, w: prior.locate(theta))
    if log_joint is not None and log_lik is None and prior is None:

        def log_local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
            return _checked(log_joint(theta, z, x), "log_joint")

    elif log_joint is None and log_lik is not None and prior is not None:
        log_prior = _density(prior)

        def log_local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
            return _joined(log_prior(theta, z), log_lik(theta, z, x))

    else:
        raise ValueError(_once("latent_model(init, log_joint)", "latent_model(init, ", "prior"))
    return Model(
        init=init,
        log_prior=_no_prior,
        log_local=log_local,
        latents=("z",),
        priors=_stated(z=stated),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
        check=check,
        traits=traits_of(*traits),
    )


def bayes_model(
    log_prior: Callable[[PyTree, PyTree], LogDensity] | Prior,
    log_lik: Callable[[PyTree, PyTree, PyTree], LogDensity],
    *,
    init: Callable[[Key], PyTree] = lambda key: (),
    simulate: Callable[..., Any] | None = None,
    log_evidence: Callable[..., Scalar] | None = None,
    posterior: Callable[..., PyTree] | None = None,
    check: Callable[[PyTree], None] | None = None,
    traits: Sequence[Any] = (),
) -> Model:
    """A model with one global latent w: log p(w | theta) = log_prior(theta, w), log p(x_i | w) =
    log_lik(theta, w, x).

    Args:
      log_prior: (theta, w) -> [], or p(w | theta) as a family, a `Prior` with `locate(theta)`.
      log_lik: of ONE datum: it is summed over the data, and scaled by N / B, elsewhere.
      log_evidence: (theta, x) -> exact log-evidence of the whole data set, x leaves [N, ...].
      posterior: (theta, x) -> lam of the exact posterior given all data.
      check: concrete data, leaves [B, ...] -> None, or ValueError.
      traits: what else it can do, records from `vijax.models.traits`.
    """

    def log_local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
        return _checked(log_lik(theta, w, x), "log_lik")

    prior = log_prior if isinstance(log_prior, Prior) else None
    return Model(
        init=init,
        log_prior=_density(log_prior),
        log_local=log_local,
        latents=("w",),
        priors=_stated(w=prior),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
        check=check,
        traits=traits_of(*traits),
    )


def hierarchical_model(
    log_prior: Callable[[PyTree, PyTree], LogDensity] | Prior,
    log_local: Callable[[PyTree, PyTree, PyTree, PyTree], LogDensity] | None = None,
    *,
    log_lik: Callable[[PyTree, PyTree, PyTree, PyTree], LogDensity] | None = None,
    prior_z: Prior | None = None,
    init: Callable[[Key], PyTree] = lambda key: (),
    simulate: Callable[..., Any] | None = None,
    log_evidence: Callable[..., Scalar] | None = None,
    posterior: Callable[..., PyTree] | None = None,
    check: Callable[[PyTree], None] | None = None,
    traits: Sequence[Any] = (),
) -> Model:
    """A model with both: log p(w | theta), and log p(z_i, x_i | w, theta) as `log_local(theta, w,
    z, x)`, or as `log_lik` and `prior_z`.

    Args:
      log_prior: (theta, w) -> [], or p(w | theta) as a family, a `Prior` with `locate(theta)`.
      log_lik: (theta, w, z, x) -> log p(x | z, w, theta).
      prior_z: p(z | w, theta) as a family, `locate(theta, w)`.
      log_evidence: (theta, x) -> exact log-evidence of the whole data set.
      posterior: (theta, x) -> exact lam given all data.
      check: concrete data, leaves [B, ...] -> None, or ValueError.
      traits: what else it can do, records from `vijax.models.traits`.

    Raises:
      ValueError: unless it is `log_local` alone, or the likelihood with the prior of z.
    """
    if log_local is not None and log_lik is None and prior_z is None:

        def local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
            return _checked(log_local(theta, w, z, x), "log_local")

    elif log_local is None and log_lik is not None and prior_z is not None:
        log_prior_z = _density(prior_z)

        def local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> LogDensity:
            return _joined(log_prior_z(theta, w, z), log_lik(theta, w, z, x))

    else:
        one, other = "hierarchical_model(log_prior, log_local)", "hierarchical_model(log_prior, "
        raise ValueError(_once(one, other, "prior_z"))
    prior = log_prior if isinstance(log_prior, Prior) else None
    return Model(
        init=init,
        log_prior=_density(log_prior),
        log_local=local,
        latents=("w", "z"),
        priors=_stated(w=prior, z=prior_z),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
        check=check,
        traits=traits_of(*traits),
    )


def _density(prior: Callable[..., LogDensity] | Prior) -> Callable[..., LogDensity]:
    """(the arguments of `locate`, then the latent) -> log p."""
    if not isinstance(prior, Prior):
        return prior
    family, locate = prior.family, prior.locate
    if prior.log_prob is not None:
        return prior.log_prob
    return lambda *given: family.log_prob(locate(*given[:-1]), given[-1])


def _joined(log_prior: LogDensity, log_lik: LogDensity) -> LogDensity:
    before, _ = total_and_terms(log_prior, "the prior's log_prob")
    total, terms = total_and_terms(log_lik, "log_lik")
    return add_terms({"prior": before}, terms) if terms else before + total


def _once(one: str, other: str, prior: str) -> str:
    return (
        f"{one} takes no {prior}: the latent's density would be stated twice, and nobody could see "
        f"where the two differ. Write {other}log_lik=..., {prior}=...), log_lik being log p(x | z) "
        f"alone: the log-joint is made of both. Without a prior as a family, write {one} and no "
        "log_lik."
    )


def _stated(**priors: Prior | None) -> Mapping[str, Prior]:
    return FrozenDict({name: prior for name, prior in priors.items() if prior is not None})


def _checked(value: LogDensity, what: str) -> LogDensity:
    total_and_terms(value, what)
    return value


def _no_prior(theta: PyTree, w: PyTree) -> Scalar:
    return jnp.zeros(())
