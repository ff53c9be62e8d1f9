"""A mixture of factor analysers: a discrete and a continuous local latent in one model."""

import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import Blocks, categorical, diag_normal, mean, need, product
from vijax.inference import Model, Prior
from vijax.models.base import latent_model
from vijax.models.normal_prior import check_positive
from vijax.models.probabilistic_pca import posterior_moments, regression_statistics
from vijax.models.traits import SufficientStatistics
from vijax.types import Array, Key, PyTree, Q, Scalar


def mixture_of_factor_analyzers(num_components: int, observed_dim: int, latent_dim: int) -> Model:
    """C ~ Categorical, z ~ Normal(0, I_D), x | c, z ~ Normal(W_c z + b_c, s^2 I_P). Ghahramani and
    Hinton 1996.

    theta: `logits` [C], `weights` [C, P, D], `bias` [C, P], `log_noise` [] = log s. Latent: {"c":
    one-hot [C], "z": [D]}, for a guide such as `product(c=categorical(C), z=diag_normal(D))` with
    one rule per block. x: [P]. Exact evidence; the posterior is not a product (z depends on c), so
    a product's bound has a gap. Extended linearly to relaxed c.

    Args:
      num_components: C, at least 2.
      observed_dim: P.
      latent_dim: D.
    """
    name = "mixture_of_factor_analyzers"
    check_positive(
        name, num_components=num_components, observed_dim=observed_dim, latent_dim=latent_dim
    )

    def init(key: Key) -> PyTree:
        key_weights, key_bias = jax.random.split(key)
        return {
            "logits": jnp.zeros(num_components),
            "weights": 0.1
            * jax.random.normal(key_weights, (num_components, observed_dim, latent_dim)),
            "bias": jax.random.normal(key_bias, (num_components, observed_dim)),
            "log_noise": jnp.zeros(()),
        }

    def log_lik(theta: PyTree, z: PyTree, x: Array) -> Scalar:
        means = theta["weights"] @ z["z"] + theta["bias"]  # [C, P]
        log_components = jnp.sum(densities.normal(x[None, :], means, theta["log_noise"]), axis=1)
        return z["c"] @ log_components

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[PyTree, Array]:
        key_c, key_z, key_x = jax.random.split(key, 3)
        classes = jax.random.categorical(key_c, theta["logits"], shape=(num_data,))
        z = jax.random.normal(key_z, (num_data, latent_dim))
        noise = jnp.exp(theta["log_noise"]) * jax.random.normal(key_x, (num_data, observed_dim))
        x = jnp.einsum("npd,nd->np", theta["weights"][classes], z) + theta["bias"][classes] + noise
        return {"c": jax.nn.one_hot(classes, num_components, dtype=x.dtype), "z": z}, x

    def log_evidence(theta: PyTree, x: Array) -> Scalar:
        def component(weights: Array, bias: Array) -> Scalar:
            factor, mean = posterior_moments(weights, theta["log_noise"], x - bias)
            joint = jnp.sum(densities.normal(x, weights @ mean + bias, theta["log_noise"]))
            joint = joint + jnp.sum(densities.standard_normal(mean))
            return (
                joint
                + 0.5 * latent_dim * densities.LOG_2PI
                - jnp.sum(jnp.log(jnp.diagonal(factor)))
            )

        return jax.nn.logsumexp(
            jax.nn.log_softmax(theta["logits"])
            + jax.vmap(component)(theta["weights"], theta["bias"])
        )

    def locate(theta: PyTree) -> PyTree:
        zeros = jnp.zeros(latent_dim, theta["weights"].dtype)
        return {"c": {"logits": theta["logits"]}, "z": {"loc": zeros, "log_scale": zeros}}

    prior = Prior(product(c=categorical(num_components), z=diag_normal(latent_dim)), locate)
    return latent_model(
        init,
        log_lik=log_lik,
        prior=prior,
        simulate=simulate,
        log_evidence=log_evidence,
        traits=[SufficientStatistics(_statistics, _maximize, _expected)],
    )


def _statistics(q: Q, x: Array) -> PyTree:
    """Of the regression in every class, weighted by its share; z may depend on c, as in a
    `families.chain`.
    """
    blocks = need(q.family, Blocks)
    share = mean(blocks.families["c"], blocks.lam("c", q.lam, {}))

    def given(c: Array) -> PyTree:
        return regression_statistics(Q(blocks.families["z"], blocks.lam("z", q.lam, {"c": c})), x)

    each = jax.vmap(given)(jnp.eye(share.size, dtype=share.dtype))
    each = jax.tree.map(lambda leaf: share[:, None, None] * leaf, each)
    return each | {"square": x @ x}


def _expected(theta: PyTree) -> PyTree:
    share = jax.nn.softmax(theta["logits"])[:, None, None]
    both = jnp.concatenate([theta["weights"], theta["bias"][:, :, None]], axis=2)
    second = share * jnp.eye(both.shape[2], dtype=both.dtype)[None]
    noise = both.shape[1] * jnp.exp(2.0 * theta["log_noise"])
    square = jnp.sum(share * jnp.square(both)) + noise
    return {"cross": share * both, "second": second, "square": square}


def _maximize(theta: PyTree, mean: PyTree) -> PyTree:
    share = mean["second"][:, -1, -1]
    least = jnp.finfo(share.dtype).tiny
    there = (share > least)[:, None, None]
    own = jnp.concatenate([theta["weights"], theta["bias"][:, :, None]], axis=2)
    second = jnp.where(there, mean["second"], jnp.eye(own.shape[2], dtype=own.dtype)[None])
    solved = jnp.linalg.solve(second, jnp.swapaxes(mean["cross"], 1, 2))
    both = jnp.where(there, jnp.swapaxes(solved, 1, 2), own)
    variance = (mean["square"] - jnp.sum(both * mean["cross"])) / both.shape[1]
    return {
        "logits": jnp.log(jnp.maximum(share, least)),
        "weights": both[:, :, :-1],
        "bias": both[:, :, -1],
        "log_noise": 0.5 * jnp.log(variance),
    }
