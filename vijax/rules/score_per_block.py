"""Score function with credit: a block's log q is multiplied only by what depends on that block."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from vijax.rules.base import draw, evaluate, mean_aux, rule
from vijax.types import Array, Aux, Family, Integrand, PyTree, Requirements, Rule, Sample


class Known(NamedTuple):
    """What is known when credit is given.

    Attributes:
      samples: K draws
      others: z of K more, independent of them
      values: [K] the integrand at the samples
      terms: its aux, leaves [K, ...]
    """

    family: Family
    lam: PyTree
    samples: Sample
    others: PyTree
    values: Array
    terms: PyTree


class Credit(NamedTuple):
    """How the part of the integrand that depends on one block is found.

    Attributes:
      signal: (block, integrand, known) -> [K]
    """

    name: str
    signal: Callable[[str, Integrand, Known], Array]
    evaluations: str


def score_per_block(credit: Credit | None = None) -> Rule:
    """Rao-Blackwellised score function: sum_b f_b(z) dlog q_b(z_b)/dlam_b, f_b the integrand less
    parts free of block b. Ranganath et al. 2014, eq. 6; Schulman et al. 2015, section 4.

    Args:
      credit: `by_substitution()`, the default, or `by_terms(depends)`.

    Unbiased for: the gradient of the ELBO, in theta and phi; f needs no derivative in z.
    Requires:     a `families.product`, whose blocks are independent; a linear objective.
    State:        none.
    Cost:         (1 + B) K evaluations of the integrand per datum for B blocks; K with `by_terms`.
    """
    chosen = by_substitution() if credit is None else credit
    name = f"score_per_block({chosen.name})"

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        draw_key, other_key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(lam)
        samples = draw(draw_key, family, fixed, num_samples)
        values, aux = evaluate(integrand, samples)
        known = Known(
            family, fixed, samples, draw(other_key, family, fixed, num_samples).z, values, aux
        )
        total = jnp.mean(values)
        for block, part in family.blocks.items():
            signal = chosen.signal(block, integrand, known)
            log_q = jax.vmap(part.log_prob, in_axes=(None, 0))(lam[block], samples.z[block])
            total = total + jnp.mean(
                jax.lax.stop_gradient(signal) * (log_q - jax.lax.stop_gradient(log_q))
            )
        return total, Aux((), mean_aux(aux))

    requires = Requirements(
        paper="Ranganath et al. 2014",
        linear_objective=True,
        evaluations=chosen.evaluations,
        independent_blocks=True,
        advice="Write score().",
    )
    return rule(name, requires, surrogate)


def by_substitution() -> Credit:
    """f(z) - f(z with the block drawn anew): every part that is free of the block cancels exactly,
    named or not.
    """

    def signal(block: str, integrand: Integrand, known: Known) -> Array:
        z = {**known.samples.z, block: known.others[block]}
        log_q = jax.vmap(known.family.log_prob, in_axes=(None, 0))(known.lam, z)
        return known.values - evaluate(integrand, Sample(z, log_q, known.samples.key))[0]

    return Credit("by_substitution()", signal, "(1+B)K")


def by_terms(depends: Mapping[str, tuple[str, ...]]) -> Credit:
    """The sum of the terms named for the block, less the block's own log q; with K >= 2, less the
    other samples' mean of that.

    A model says its terms by returning a dict of them, whose sum it is, in place of a number: from
    `log_joint` or `log_local` for blocks of a local latent, from `log_prior` and `log_lik` for
    blocks of a global one (a term of log_lik is then the sum over the data). Terms that depend on
    both levels of a hierarchical model belong to its local latent alone.

        def log_joint(theta, z, x):
            return {"prior_a": ..., "prior_b": ..., "likelihood": ...}

    rules.score_per_block(rules.by_terms({"a": ("prior_a", "likelihood"), "b": ("prior_b",
    "likelihood")}))

    With the rule used bare, the integrand returns (value, terms), value = sum of terms - log_q. A
    term left out for a block on which it depends biases that block's gradient, and nothing here can
    tell.

    Args:
      depends: block -> the names of all terms that depend on it.
    """

    def signal(block: str, integrand: Integrand, known: Known) -> Array:
        _check_terms(depends, known.family, known.terms)
        log_prob = cast(Mapping[str, Family], known.family.blocks)[block].log_prob
        own = jax.vmap(log_prob, in_axes=(None, 0))(known.lam[block], known.samples.z[block])
        credit = sum((known.terms[name] for name in depends[block]), -own)
        count = credit.shape[0]
        return credit if count == 1 else (credit - jnp.mean(credit)) * (count / (count - 1))

    return Credit("by_terms()", signal, "K")


def _check_terms(depends: Mapping[str, tuple[str, ...]], family: Family, terms: PyTree) -> None:
    blocks = sorted(family.blocks or ())
    if sorted(depends) != blocks:
        raise ValueError(
            f"by_terms: depends has entries {sorted(depends)}, but {family.name} has blocks "
            f"{blocks}."
        )
    known = set(terms) if isinstance(terms, Mapping) else set()
    missing = {name for names in depends.values() for name in names} - known
    if missing:
        raise ValueError(
            f"by_terms: terms {sorted(missing)} are not among those of the log-joint, "
            f"{sorted(known)}. Return a dict "
            "{name: term} from it (see by_terms), or write score_per_block(by_substitution())."
        )
