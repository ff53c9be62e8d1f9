"""Log-evidence by annealed importance sampling, from q or the prior to the posterior."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from vijax.bijectors import onto
from vijax.diagnostics.annealing import GAIN, Chains, anneal, temperatures
from vijax.diagnostics.evidence import Evidence, by_chunks, evidence_of
from vijax.draws import check_rows
from vijax.estimators import log_joint, log_local
from vijax.families import Density, transports
from vijax.guides import at_hand, global_q, over_data
from vijax.inference import Guide, Model
from vijax.shapes import check_data
from vijax.types import Array, Batch, Integrand, Key, Params, PyTree, Q, Sample, Scalar


class Annealed(NamedTuple):
    """Of every datum, leaves [B], or of all data together, leaves [].

    Attributes:
      evidence: of the chains' weights; its `elbo` is their mean log-weight, a bound from below that
        is far tighter than q's.
      acceptance: of the Hamiltonian moves, mean over chains and temperatures. The pilot aims at
        0.8; far below, moves mix badly and the chains' weights are scattered.
    """

    evidence: Evidence
    acceptance: Array


class ChainSettings(NamedTuple):
    """Settings: what a compiled run depends on."""

    num_chains: int
    num_temperatures: int
    num_leapfrog: int


def annealed_evidence(
    key: Key,
    model: Model,
    params: Params,
    batch: Batch,
    *,
    start: Guide | None = None,
    num_chains: int = 64,
    num_temperatures: int = 200,
    num_leapfrog: int = 10,
    chunk_size: int = 16,
) -> Annealed:
    """Log p(x_i), or with a global latent log p(x_1..x_B), by annealed importance sampling with
    Hamiltonian moves. Neal 2001; Wu et al. 2017.

    Mean weights are unbiased for p(x). The step sizes, one per temperature and datum, are found by
    a pilot run of chains of its own, a quarter as many, and are then fixed: chains that adapted
    their own moves would bias their weights. Moves are made on R^D, see `bijectors.onto`.

    Args:
      params: theta of the model; phi of the guide that chains start from, else nothing, `()`.
      start: q, the chains' start: quicker, but a mode that q misses stays missed. None: the prior,
        which the model must state.
      num_chains: C, the number of weights; from 25 on their k-hat is known.
      num_temperatures: T; error and bias of log mean w fall with it.
      num_leapfrog: steps of a move; the cost is C T (num_leapfrog + 1) gradients of the log-joint,
        and a quarter more for the pilot.
      chunk_size: data at once.

    Raises:
      ValueError: if there are no chains, no prior, two kinds of latents, or latents that no map
        from R^D reaches.
    """
    guide = start or prior_guide(model)
    given = params if start else params._replace(phi=dict.fromkeys(model.latents, params.theta))
    settings = chain_settings(
        "annealed_evidence", guide, num_chains, num_temperatures, num_leapfrog
    )
    check_rows(guide, batch)
    check_data(model.check, batch.x)

    def run(part: Batch) -> Annealed:
        here = at_hand(guide, given, part)
        (chains,) = run_chains(key, here, part, None, model=model, guide=guide, settings=settings)
        return Annealed(evidence_of(np.asarray(chains.log_w)), chains.acceptance.mean(axis=-1))

    return run(batch) if "w" in guide.families else by_chunks(run, batch, chunk_size)


@functools.partial(jax.jit, static_argnames=("model", "guide", "settings"))
def run_chains(
    key: Key,
    params: Params,
    batch: Batch,
    exact: PyTree,
    *,
    model: Model,
    guide: Guide,
    settings: ChainSettings,
) -> tuple[Chains, ...]:
    """Chains from q, log_w [b, C] or [C], and where there are exact draws those from them."""
    if "w" in guide.families:

        def of_all(w: PyTree) -> Scalar:
            return log_joint(model, params.theta, w, batch, batch.index.shape[0])[0]

        return _chains(key, global_q(guide, params.phi), of_all, exact, settings)

    def integrand(pair: tuple) -> Integrand:
        return lambda s: log_local(model, params.theta, None, s.z, pair[0])[0] - s.log_q

    def body(key: Key, q: Q, f: Integrand, pair: tuple) -> tuple[Chains, ...]:
        zero = jnp.zeros(())
        return _chains(key, q, lambda z: f(Sample(z, zero, key)), pair[1], settings)

    both = guide._replace(at=lambda phi, pair: guide.at(phi, pair[0]))
    paired = Batch((batch.x, exact), batch.index)
    return over_data(both, params.phi, key, paired, integrand, body)


def _chains(
    key: Key, q: Q, log_joint: Callable[[PyTree], Scalar], exact: PyTree, settings: ChainSettings
) -> tuple[Chains, ...]:
    """Of one posterior: pilot, chains from q, chains from an exact draw if there is one."""
    flat, (family, lam) = onto(q.family.support), q
    betas = temperatures(settings.num_temperatures)

    def ends(u: Array) -> tuple[Scalar, Scalar]:
        z, log_det = flat.forward(u), flat.log_det(u)
        return family.log_prob(lam, z) + log_det, log_joint(z) + log_det

    def begin(key: Key, size: int) -> Array:
        return jax.vmap(flat.inverse)(transports(family, lam, family.noise(key, size))[0])

    run = functools.partial(anneal, ends=ends, num_leapfrog=settings.num_leapfrog)
    keys = jax.random.split(key, 5)
    pilot = begin(keys[0], max(1, settings.num_chains // 4))
    first = jnp.full(settings.num_temperatures, 0.3 * flat.size**-0.25, pilot.dtype)
    sizes = run(keys[1], pilot, betas=betas, sizes=first, gain=GAIN).sizes
    up = run(keys[2], begin(keys[3], settings.num_chains), betas=betas, sizes=sizes)
    if exact is None:
        return (up,)
    u = jnp.broadcast_to(flat.inverse(exact), (settings.num_chains, flat.size)).astype(pilot.dtype)
    back = jnp.concatenate([sizes[-2::-1], sizes[:1]])  # of the moves at the same temperatures
    return up, run(keys[4], u, betas=betas[::-1], sizes=back)


@functools.lru_cache(maxsize=64)
def prior_guide(model: Model) -> Guide:
    """The prior as q; phi is {latent: theta}. Of one model it is one guide, for `jit`."""
    if len(model.latents) != 1 or set(model.priors) != set(model.latents):
        raise ValueError(
            "annealing starts from the prior of a model with either a global or a local latent, "
            "stated as a family: latent_model(..., log_lik=..., prior=vijax.Prior(...)). Where "
            "there is none, give start=guide, a fitted q."
        )
    name = model.latents[0]
    prior = model.priors[name]
    return Guide(
        init=lambda key: {name: model.init(key)},
        families=FrozenDict({name: prior.family}),
        global_lam=lambda phi: prior.locate(phi[name]),
        at=lambda phi, x: prior.locate(phi[name], None),
        refine=lambda key, lam, integrand: lam,
        is_table=lambda phi: jax.tree.map(lambda leaf: False, phi),
        num_data=None,
    )


def chain_settings(
    what: str, guide: Guide, chains: int, temperatures: int, leapfrog: int
) -> ChainSettings:
    """Settings, if they mean something for this guide."""
    if chains < 2 or temperatures < 1 or leapfrog < 1:
        raise ValueError(
            f"{what}(num_chains={chains}, num_temperatures={temperatures}, "
            f"num_leapfrog={leapfrog}): at least 2 chains, for a standard error, and 1 of the rest."
        )
    if len(guide.families) != 1:
        raise ValueError(
            f"{what}: for a global or a local latent, not both: log_evidence has both."
        )
    (family,) = guide.families.values()
    if family.traits.get(Density) is None:
        raise ValueError(f"{what} from {family.name}: {Density.refusal.partition(',')[0]}.")
    try:
        onto(family.support)
    except ValueError as error:
        raise ValueError(
            f"{what}: Hamiltonian moves are made on R^D, but {str(error).partition('. ')[0]}. "
            "Use log_evidence, or enumerate such a latent."
        ) from error
    return ChainSettings(chains, temperatures, leapfrog)
