"""The Bayesian Gaussian mixture: unknown weights and means with conjugate priors, an assignment per
datum; exact by summing all C^N assignments, while there are few.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from vijax import densities
from vijax.families import Entropy, categorical, diag_normal, dirichlet, mean, need, product
from vijax.families.simplex import log_multivariate_beta
from vijax.inference import Model, Prior
from vijax.models.base import hierarchical_model
from vijax.models.normal_prior import check_positive
from vijax.models.traits import Conditionals
from vijax.types import Array, Key, PyTree, Q, Scalar

MAX_ASSIGNMENTS = 2**17


def bayesian_gaussian_mixture(
    num_components: int,
    observed_dim: int,
    *,
    concentration: float = 1.0,
    prior_scale: float = 1.0,
    noise_scale: float = 1.0,
) -> Model:
    """Weights ~ Dirichlet(concentration 1_C), loc_c ~ Normal(0, prior_scale^2 I), z_i | w ~
    Categorical(weights), x_i | z_i = c ~ Normal(loc_c, noise_scale^2 I). Bishop 2006, section 10.2.

    theta: (). w: {"weights": [C] on the simplex, "loc": [C, P]}, for a guide such as
    `shared(product(weights=dirichlet(C), loc=diag_normal((C, P))))`. z: one-hot [C]. x: [P]. The
    evidence is the sum of the C^N assignments' closed forms, for at most 2^17 of them. Relabelling
    the components changes nothing, so a q around one labelling has a gap of log C! nats or so where
    they stand apart. CAVI and stochastic VI by its `Conditionals`.

    Args:
      num_components: C, at least 2.
      observed_dim: P.
      concentration: of the symmetric Dirichlet prior.
      prior_scale: known standard deviation of the component means about 0, in data units.
      noise_scale: known standard deviation of x within a component, in data units.
    """
    name = "bayesian_gaussian_mixture"
    check_positive(name, num_components=num_components, observed_dim=observed_dim)
    check_positive(name, concentration=concentration)
    check_positive(name, prior_scale=prior_scale, noise_scale=noise_scale)
    log_prior_scale, log_noise = math.log(prior_scale), math.log(noise_scale)
    shape = (num_components, observed_dim)
    of_weights, of_loc = dirichlet(num_components), diag_normal(shape)

    def log_lik(theta: PyTree, w: PyTree, z: Array, x: Array) -> Scalar:
        chex.assert_shape(x, (observed_dim,))
        return z @ jnp.sum(densities.normal(x[None, :], w["loc"], log_noise), axis=1)

    def locate(theta: PyTree) -> PyTree:
        return {
            "weights": {"log_concentration": jnp.full(num_components, math.log(concentration))},
            "loc": {"loc": jnp.zeros(shape), "log_scale": jnp.full(shape, log_prior_scale)},
        }

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[PyTree, Array]:
        key_weights, key_loc, key_z, key_x = jax.random.split(key, 4)
        weights = jax.random.dirichlet(key_weights, jnp.full(num_components, concentration))
        loc = prior_scale * jax.random.normal(key_loc, shape)
        classes = jax.random.categorical(key_z, jnp.log(weights), shape=(num_data,))
        noise = noise_scale * jax.random.normal(key_x, (num_data, observed_dim))
        z = jax.nn.one_hot(classes, num_components, dtype=loc.dtype)
        return {"w": {"weights": weights, "loc": loc}, "z": z}, loc[classes] + noise

    def log_evidence(theta: PyTree, x: Array) -> Scalar:
        def log_joint(z: Array) -> Scalar:
            return assignment_log_joint(
                z, x, concentration=concentration, prior_scale=prior_scale, noise_scale=noise_scale
            )

        return jax.nn.logsumexp(jax.vmap(log_joint)(assignments(num_components, x.shape[0])))

    return hierarchical_model(
        Prior(product(weights=of_weights, loc=of_loc), locate),
        log_lik=log_lik,
        prior_z=Prior(
            categorical(num_components), lambda theta, w: {"logits": jnp.log(w["weights"])}
        ),
        simulate=simulate,
        log_evidence=log_evidence,
        traits=[_conditionals(concentration, prior_scale, noise_scale)],
    )


def assignments(num_components: int, num_data: int) -> Array:
    """[C^N, N, C] every assignment of N data, one-hot.

    Raises:
      ValueError: for more than 2^17 of them.
    """
    total = num_components**num_data
    if total > MAX_ASSIGNMENTS:
        raise ValueError(
            f"the {num_components}^{num_data} = {total:.3g} assignments of {num_data} data to "
            f"{num_components} components are more than the {MAX_ASSIGNMENTS} that are summed one "
            "by one. Take fewer data, or bound the evidence: vijax.diagnostics."
        )
    place = num_components ** jnp.arange(num_data)
    classes = (jnp.arange(total)[:, None] // place[None, :]) % num_components
    return jax.nn.one_hot(classes, num_components, dtype=jnp.result_type(float))


def assignment_log_joint(
    z: Array, x: Array, *, concentration: float, prior_scale: float, noise_scale: float
) -> Scalar:
    """[] log p(x, z) of a whole data set with one assignment of all its data, weights and means
    integrated out. z: [N, C] one-hot. x: [N, P].
    """
    counts = jnp.sum(z, axis=0)  # [C]
    precision = (prior_scale**-2 + counts * noise_scale**-2)[:, None]
    loc = z.T @ x * noise_scale**-2 / precision
    # p(x | z) = p(x, loc | z) / p(loc | x, z) at the mean.
    likelihood = jnp.sum(densities.normal(x, z @ loc, math.log(noise_scale)))
    prior = jnp.sum(densities.normal(loc, 0.0, math.log(prior_scale)))
    volume = 0.5 * x.shape[1] * jnp.sum(densities.LOG_2PI - jnp.log(precision))
    before = jnp.full_like(counts, concentration)
    labels = log_multivariate_beta(before + counts) - log_multivariate_beta(before)
    return labels + likelihood + prior + volume


def _conditionals(concentration: float, prior_scale: float, noise_scale: float) -> Conditionals:
    """What a datum adds to q(w): its share to the concentrations and, over the noise's variance, to
    the precisions, with x to their products with the means.
    """
    log_noise, least = math.log(noise_scale), prior_scale**-2

    def local(theta: PyTree, lam: PyTree, x: Array) -> PyTree:
        """The expected log-joint of every class."""
        counts, around = jnp.exp(lam["weights"]["log_concentration"]), lam["loc"]
        log_weights = digamma(counts) - digamma(jnp.sum(counts))
        spread = jnp.exp(2.0 * (around["log_scale"] - log_noise))
        fit = densities.normal(x[None, :], around["loc"], log_noise) - 0.5 * spread
        return {"logits": log_weights + jnp.sum(fit, axis=1)}

    def statistics(q: Q, x: Array) -> PyTree:
        share = mean(q.family, q.lam)
        return {
            "share": share,
            "count": jnp.outer(share, jnp.ones_like(x)),
            "first": jnp.outer(share, x),
        }

    def update(theta: PyTree, lam: PyTree, mean: PyTree, num_data: int) -> PyTree:
        scale = num_data * noise_scale**-2
        precision = least + scale * mean["count"]
        return {
            "weights": {"log_concentration": jnp.log(concentration + num_data * mean["share"])},
            "loc": {
                "loc": scale * mean["first"] / precision,
                "log_scale": -0.5 * jnp.log(precision),
            },
        }

    def implied(theta: PyTree, lam: PyTree, num_data: int) -> PyTree:
        scale, precision = num_data * noise_scale**-2, jnp.exp(-2.0 * lam["loc"]["log_scale"])
        return {
            "share": (jnp.exp(lam["weights"]["log_concentration"]) - concentration) / num_data,
            "count": (precision - least) / scale,
            "first": precision * lam["loc"]["loc"] / scale,
        }

    def bound(theta: PyTree, lam: PyTree, q: Q, x: Array) -> Scalar:
        expected = jnp.vdot(mean(q.family, q.lam), local(theta, lam, x)["logits"])
        return expected + need(q.family, Entropy).value(q.lam)

    return Conditionals(local, statistics, update, implied, bound)
