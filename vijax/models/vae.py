"""Variational autoencoders' generative half: z ~ Normal(0, I), x | z from a decoder network.
Encoders belong to guides.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen

from vijax import densities
from vijax.families import diag_normal
from vijax.inference import Model
from vijax.models.base import latent_model
from vijax.models.data import check_unit
from vijax.models.normal_prior import isotropic_normal_prior
from vijax.networks import as_network
from vijax.shapes import is_concrete, same_shapes
from vijax.types import Array, Key, PyTree, Scalar


class Likelihood(NamedTuple):
    """p(x | decoder output) of one datum; `output` is what the decoder returns for one z.

    Attributes:
      log_prob: (x, output) -> [] nats; the value first, as in `vijax.densities`.
      mean: output -> E[x].
      sample: (key, output) -> x.
      outputs_per_pixel: width of the decoder's last layer, per element of x.
      check: x, concrete, leaves [B, ...] -> None, or ValueError; see `Model.check`.
    """

    log_prob: Callable[[PyTree, PyTree], Scalar]
    mean: Callable[[PyTree], PyTree]
    sample: Callable[[Key, PyTree], PyTree]
    outputs_per_pixel: int
    check: Callable[[PyTree], None] | None = None


def bernoulli_pixels() -> Likelihood:
    """Independent Bernoulli pixels, x [P] in {0, 1}; the decoder returns logits [P]. The
    log-density is linear in x, so that grey values in [0, 1] are the mean over their binarizations.
    """

    def log_prob(x: Array, output: Array) -> Scalar:
        same_shapes(output, x, "bernoulli_pixels: log_prob(x, output), whose output (logits)")
        if is_concrete(x):
            check_unit(jax.device_get(x), "bernoulli_pixels: log_prob(x, output), whose x")
        return jnp.sum(densities.bernoulli(x, output))

    def sample(key: Key, output: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(output)).astype(output.dtype)

    return Likelihood(
        log_prob=log_prob,
        mean=jax.nn.sigmoid,
        sample=sample,
        outputs_per_pixel=1,
        check=lambda x: check_unit(x, "bernoulli_pixels: x"),
    )


def normal_pixels(*, min_scale: float) -> Likelihood:
    """Independent normal pixels; the decoder returns [2 P]: means, then raw log-variances. Kingma
    and Welling 2014, C.2.

    The log-variance is 2 log(min_scale) + softplus(raw - 2 log(min_scale)): raw itself well above
    its lower bound. Without a bound the density of a pixel that is constant over the data, such as
    an image's corner, grows for ever.

    Args:
      min_scale: lower bound on a pixel's standard deviation, in units of x; the spacing of its grey
        values is a natural one.

    Raises:
      ValueError: if min_scale is not positive.
    """
    if not min_scale > 0.0:
        raise ValueError(
            f"normal_pixels(min_scale={min_scale}): it must be positive. At 0 the likelihood of a "
            f"pixel that never changes is "
            "unbounded and training ends in NaN; the spacing of the grey values (1/255 or 1/16) "
            "is a natural choice."
        )
    least = 2.0 * jnp.log(min_scale)

    def moments(output: Array) -> tuple[Array, Array]:
        mean, raw = jnp.split(output, 2)
        return mean, 0.5 * (least + jax.nn.softplus(raw - least))  # mean, log standard deviation

    def log_prob(x: Array, output: Array) -> Scalar:
        if output.shape != (2 * x.size,):
            raise ValueError(
                f"normal_pixels: log_prob(x, output) takes x [P], then output [2 P], but got "
                f"{x.shape}, then {output.shape}. Make the decoder's last layer 2 P wide."
            )
        mean, log_scale = moments(output)
        return jnp.sum(densities.normal(x, mean, log_scale))

    def sample(key: Key, output: Array) -> Array:
        mean, log_scale = moments(output)
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)

    return Likelihood(
        log_prob=log_prob,
        mean=lambda output: moments(output)[0],
        sample=sample,
        outputs_per_pixel=2,
    )


class Mlp(linen.Module):
    """Dense layers, one vector in, one vector out: for decoders z [D] -> [P] and encoders x [P] ->
    [2 D].
    """

    widths: Sequence[int]  # of the hidden layers
    num_outputs: int
    activation: Callable[[Array], Array] = jax.nn.silu

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """[...] -> [num_outputs]; x is flattened."""
        hidden = jnp.ravel(x)
        for width in self.widths:
            hidden = self.activation(linen.Dense(width)(hidden))
        return linen.Dense(self.num_outputs)(hidden)


def vae(decoder: Any, latent_dim: int, likelihood: Likelihood) -> Model:
    """p(z) p(x | z) with z ~ Normal(0, I_D) and x | z ~ likelihood(decoder(z)). Kingma and Welling
    2014; Rezende et al. 2014.

    theta: the decoder's parameters. z: [D]. x: whatever `likelihood` takes. The prior is stated as
    a family, so that `rules.closed_form_kl` applies. `simulate(key, theta, num_data)` -> (z [N, D],
    x [N, ...]).

    Args:
      decoder: z -> the likelihood's `output`; a flax module or an (init, apply) pair, see
        `networks.as_network`.
      latent_dim: D, at least 1.
      likelihood: `bernoulli_pixels()`, `normal_pixels(...)`, or your own.

    Raises:
      ValueError: if latent_dim is below 1.
    """
    if latent_dim < 1:
        raise ValueError(f"vae(latent_dim={latent_dim}): the latent needs at least one dimension.")
    network = as_network(decoder, jax.ShapeDtypeStruct((latent_dim,), jnp.result_type(float)))

    def log_lik(theta: PyTree, z: Array, x: PyTree) -> Scalar:
        chex.assert_shape(z, (latent_dim,))
        return likelihood.log_prob(x, network.apply(theta, z))

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, PyTree]:
        key_z, key_x = jax.random.split(key)
        z = jax.random.normal(key_z, (num_data, latent_dim))
        keys = jax.random.split(key_x, num_data)
        return z, jax.vmap(lambda k, z: likelihood.sample(k, network.apply(theta, z)))(keys, z)

    return latent_model(
        network.init,
        log_lik=log_lik,
        prior=isotropic_normal_prior(diag_normal(latent_dim)),
        simulate=simulate,
        check=likelihood.check,
    )
