"""Score function with credit: a block's log q is multiplied only by what depends on that block."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.dependence import responds
from vijax.families import Blocks, Density, IndependentBlocks, log_probs, need
from vijax.families import sample as sample_of
from vijax.rules.base import draw, evaluate, live_weights, no_aux, rule, stopped, zero_valued
from vijax.types import (
    Array,
    Aux,
    Integrand,
    Key,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)


class Known(NamedTuple):
    """What is known when credit is given.

    Attributes:
      q: its parameters stopped
      samples: K draws
      others: z of K more, independent of them
      values: [K] the integrand at the samples
      slope: [K] its derivative in the samples' log_q: -1 where it carries -log q, 0 where a closed
        form has taken log q's place or a plain expectation has none
      terms: its aux, leaves [K, ...]
    """

    q: Q
    samples: Sample
    others: PyTree
    values: Array
    slope: Array
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

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        draw_key, other_key = jax.random.split(key)
        samples = draw(draw_key, stopped(q), setting.num_samples)
        others = draw(other_key, stopped(q), setting.num_samples).z
        values, slope, aux = live_weights(integrand, samples)
        known = Known(stopped(q), samples, others, values, slope, aux)
        total, blocks = jnp.mean(values), need(q.family, Blocks)
        for block, part in blocks.families.items():
            signal = jax.lax.stop_gradient(chosen.signal(block, integrand, known))
            # Independent blocks: where one lies depends on no other.
            log_q = log_probs(part, blocks.lam(block, q.lam, {}), samples.z[block])
            total = total + jnp.mean(signal * zero_valued(log_q))
        return total, no_aux(aux)

    requires = Requirements(
        needs=(IndependentBlocks, Density),
        linear=True,
        evaluations=chosen.evaluations,
        paper="Ranganath et al. 2014",
        advice="Write score().",
    )
    return rule(f"score_per_block({chosen.name})", requires, surrogate)


def by_substitution() -> Credit:
    """f(z) - f(z with the block drawn anew): every part that is free of the block cancels exactly,
    named or not.
    """

    def signal(block: str, integrand: Integrand, known: Known) -> Array:
        z = {**known.samples.z, block: known.others[block]}
        log_q = log_probs(known.q.family, known.q.lam, z)
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

    With the rule used bare, the integrand returns (value, terms), value = sum of terms - log_q.
    What its value has beyond the terms that are named and log q is credited to every block: inside
    `closed_form_kl` the log prior of all blocks (`by_substitution` has less variance there).

    Raises:
      ValueError: when traced, if a term is left out for a block on which it depends, which would
        bias that block's gradient.

    Args:
      depends: block -> the names of all terms that depend on it.
    """
    named = sorted({name for names in depends.values() for name in names})

    def signal(block: str, integrand: Integrand, known: Known) -> Array:
        blocks = _check_terms(depends, named, known)
        _check_left_out(block, depends[block], named, integrand, known)
        lam = blocks.lam(block, known.q.lam, {})
        own = log_probs(blocks.families[block], lam, known.samples.z[block])
        # In log q's place may stand the prior's log-density of all blocks, in one number.
        explained = sum(known.terms[name] for name in named) + known.slope * known.samples.log_q
        left = known.slope * own + (known.values - explained)
        credit = sum((known.terms[name] for name in depends[block]), left)
        count = credit.shape[0]
        return credit if count == 1 else (credit - jnp.mean(credit)) * (count / (count - 1))

    return Credit("by_terms()", signal, "K")


def _check_terms(
    depends: Mapping[str, tuple[str, ...]], named: Sequence[str], known: Known
) -> Blocks:
    """The blocks, if they are those of `depends` and all terms named there exist."""
    family = known.q.family
    blocks = need(family, Blocks)
    if sorted(depends) != sorted(blocks.families):
        raise ValueError(
            f"by_terms: depends has entries {sorted(depends)}, but {family.name} has blocks "
            f"{sorted(blocks.families)}."
        )
    found = set(known.terms) if isinstance(known.terms, Mapping) else set()
    missing = sorted(set(named) - found)
    if missing:
        raise ValueError(
            f"by_terms: terms {missing} are not among those of the log-joint, "
            f"{sorted(found)}. Return a dict "
            "{name: term} from it (see by_terms), or write score_per_block(by_substitution())."
        )
    return blocks


def _check_left_out(
    block: str, given: Sequence[str], named: Sequence[str], integrand: Integrand, known: Known
) -> None:
    """Refuse to leave a term out for a block on which it depends: its values tell, at draws that
    differ in that block alone.
    """
    left, family = [name for name in named if name not in given], known.q.family
    like = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], known.samples))

    def terms(z: PyTree) -> list[Scalar]:
        log_q = jnp.zeros((), like.log_q.dtype)
        _, found = integrand(Sample(z, log_q, jax.random.key(0)))
        return [found[name] for name in left]

    missing = set()
    with jax.ensure_compile_time_eval():
        lam = family.init(jax.random.key(0))
        draws = [sample_of(jax.random.key(i), family, lam) for i in range(9)]
    for one, other in itertools.pairwise(draws):
        changed = responds(terms, one, {**one, block: other[block]})
        missing |= {name for name, here in zip(left, changed, strict=True) if here}
    if missing:
        raise ValueError(
            f"by_terms: terms {sorted(missing)} depend on block {block!r}, but depends[{block!r}] "
            f"= {tuple(given)} leaves them out, which would bias its gradient. Name them there."
        )
