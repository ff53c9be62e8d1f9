"""The sleep phase: phi from the model's own dreams. The wake phases are ordinary estimators with
the rule `rules.wake`.
"""

import jax
import jax.numpy as jnp

from vijax.estimators.bind import estimator_from
from vijax.guides import as_it_is
from vijax.inference import Estimate, Estimator, Guide, Model
from vijax.types import Array, Batch, Key, Params, PyTree


def sleep(model: Model, guide: Guide, *, num_samples: int = 1, num_data: int) -> Estimator:
    """Sleep-phi: ascent on N E_p(z, x)[log q(z; x)] over pairs that the model simulates. Hinton et
    al. 1995.

    Theta gets a zero gradient and the batch's values are not used: put it into `split`. Reweighted
    wake-sleep (Bornschein and Bengio 2015) with sleep-phi, respectively wake-phi, is

        split(
            theta=estimator(..., objective=iwae, rules=wake(), ...),
            phi=sleep(model, guide, num_data=N),
        )
        estimator(..., objective=iwae, rules=wake(), ...)

    Args:
      model: with `simulate` and local latents only.
      guide: an encoder; a table's rows belong to data, not to dreams.
      num_samples: dreams per datum of the batch.
      num_data: N, a scale alone, so that both phases weigh the same.

    Unbiased for: the gradient of -N E_p(x)[KL(p(z | x) || q(z; x))] in phi: x is the model's, not
                  the data's.
    Requires:     `model.simulate`; log_prob differentiable in lam; nothing of q's sampler.
    State:        none.
    Cost:         num_samples simulations and log-densities of q per datum; no evaluation of the
                  log-joint.

    Raises:
      ValueError: if the model cannot simulate, or the guide is no plain encoder of a local latent.
    """
    family = guide.families.get("z")
    simulate = model.simulate
    if simulate is None:
        raise ValueError(
            "sleep: the model has no simulate(key, theta, num_data) -> (z, x), so it cannot "
            "dream. Write rules.wake()."
        )
    if family is None or "w" in guide.families or model.latents != ("z",):
        raise ValueError(
            "sleep is for local latents alone: a latent_model with guides.amortized(...)."
        )
    if guide.refine is not as_it_is:
        raise ValueError(
            "sleep: a dream has no refinement. Give the guide that this one refines, whose encoder "
            "it shares."
        )
    if guide.num_data is not None:
        raise ValueError(
            "sleep: a table of phi_i has no row for a dreamt x. Use guides.amortized(...), or "
            "rules.wake()."
        )
    if (
        not isinstance(num_samples, int)
        or num_samples < 1
        or not isinstance(num_data, int)
        or num_data < 1
    ):
        raise ValueError(
            f"sleep(num_samples={num_samples!r}, num_data={num_data!r}): both must be ints of at "
            f"least 1."
        )

    def loss(phi: PyTree, theta: PyTree, key: Key, num_dreams: int) -> Array:
        z, x = simulate(key, theta, num_dreams)
        log_q = jax.vmap(lambda z, x: family.log_prob(guide.at(phi, x), z))(z, x)
        return -num_data * jnp.mean(log_q)

    def estimate(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
        num_dreams = num_samples * batch.index.shape[0]
        value, gradient = jax.value_and_grad(loss)(params.phi, params.theta, key, num_dreams)
        nothing = jax.tree.map(jnp.zeros_like, params)
        return Estimate(loss=value, grads=nothing._replace(phi=gradient), aux=()), state

    def init_params(key: Key) -> Params:
        key_theta, key_phi = jax.random.split(key)
        return Params(theta=model.init(key_theta), phi=guide.init(key_phi), control=())

    return estimator_from(estimate, init_params, num_data=num_data)
