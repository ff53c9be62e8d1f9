"""Bounds on the log-evidence from both sides, where the data and their latents were simulated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.diagnostics.annealed import chain_settings, prior_guide, run_chains
from vijax.diagnostics.evidence import Estimated, by_chunks, log_mean
from vijax.inference import Model
from vijax.types import Array, Batch, Key, Params, PyTree


class Sandwich(NamedTuple):
    """Bounds on log p(x) of simulated data, in expectation; leaves [N], or [] of all data together.

    Attributes:
      x: the data, leaves [N, ...].
      lower: log mean weight of chains from the prior.
      upper: minus log mean weight of chains from the exact draw of the posterior back to the prior.
        All of a datum start from the one draw that there is: the standard error is given that draw;
        that of a mean over data is seen over data.
      acceptance: of the moves of both.
    """

    x: PyTree
    lower: Estimated
    upper: Estimated
    acceptance: Array


def sandwich(
    key: Key,
    model: Model,
    theta: PyTree,
    num_data: int,
    *,
    num_chains: int = 64,
    num_temperatures: int = 200,
    num_leapfrog: int = 10,
    chunk_size: int = 16,
) -> Sandwich:
    """Bounds from both sides on log p(x) of data simulated from the model, whose own latents are
    exact draws of their posteriors: bidirectional Monte Carlo. Grosse et al. 2015.

    Where the two are close, both are right, and an annealed evidence under the same settings can be
    trusted for this theta and data like these; of real data they say nothing.

    Raises:
      ValueError: as `annealed_evidence`, and if the model has no `simulate`.
    """
    guide = prior_guide(model)
    settings = chain_settings("sandwich", guide, num_chains, num_temperatures, num_leapfrog)
    if model.simulate is None:
        raise ValueError(
            "sandwich: this model cannot simulate, so there are no exact draws of a posterior. "
            "Build it with simulate=(key, theta, num_data) -> (latents, x)."
        )
    simulate_key, chain_key = jax.random.split(key)
    latents, x = model.simulate(simulate_key, theta, num_data)
    params = Params(theta, dict.fromkeys(model.latents, theta), ())

    def run(part: Batch, latents: PyTree = None) -> tuple[Estimated, Estimated, Array]:
        (x, exact) = part.x if latents is None else (part.x, latents)
        up, down = run_chains(
            chain_key,
            params,
            Batch(x, part.index),
            exact,
            model=model,
            guide=guide,
            settings=settings,
        )
        lower, upper = log_mean(np.asarray(up.log_w)), log_mean(np.asarray(down.log_w))
        both = 0.5 * (up.acceptance + down.acceptance)
        upper = upper._replace(value=-upper.value)
        as_arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, both.dtype), (lower, upper))
        return *as_arrays, both.mean(axis=-1)

    if "w" in model.latents:
        return Sandwich(x, *run(Batch(x, jnp.arange(num_data)), latents))
    return Sandwich(x, *by_chunks(run, Batch((x, latents), jnp.arange(num_data)), chunk_size))
