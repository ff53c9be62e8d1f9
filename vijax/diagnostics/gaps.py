"""What a guide loses: because its family is too small, and because its answer is not the best."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vijax.diagnostics.brackets import mean
from vijax.diagnostics.evidence import Estimated, Evidence, by_chunks, check_samples, evidence_of
from vijax.diagnostics.smoothing import log_mean_exp
from vijax.draws import check_rows
from vijax.estimators import log_local
from vijax.families import transports
from vijax.guides import at_hand, over_data
from vijax.inference import Guide, Model
from vijax.objectives import elbo
from vijax.rules import doubly_reparameterized
from vijax.shapes import check_data
from vijax.types import (
    Array,
    Batch,
    Integrand,
    Key,
    Params,
    PyTree,
    Q,
    Rule,
    Sample,
    Scalar,
    Setting,
)

CANDIDATES = 10  # answers along the ascent, of which the best is kept


class Gaps(NamedTuple):
    """log p(x) = bound + amortization gap + approximation gap, by datum: leaves [B], nats.

    Attributes:
      evidence: `reliable` says whether it, and with it the approximation gap, can be trusted.
      best: the best bound found in the family.
      bound: the guide's.
      approximation: evidence - best, what the family costs.
      amortization: best - bound, what the guide's answer costs within the family, of one set of
        noise: its error is far below those of the two.
    """

    evidence: Evidence
    best: Estimated
    bound: Estimated
    approximation: Estimated
    amortization: Estimated


class Ascent(NamedTuple):
    """Settings of the search for the best in the family."""

    rule: Rule
    steps: int
    rate: float
    num_samples: int


def inference_gap(
    key: Key,
    model: Model,
    guide: Guide,
    params: Params,
    batch: Batch,
    *,
    steps: int = 500,
    rate: float = 0.05,
    fit_samples: int = 8,
    rule: Rule | None = None,
    num_samples: int = 1000,
    evidence: Callable[[Key, Batch], Evidence] | None = None,
    chunk_size: int = 64,
) -> Gaps:
    """Approximation and amortization gap of every datum. Cremer, Li and Duvenaud 2018, section 3.

    The best in the family is looked for from the guide's own answer, q's parameters of each datum
    by themselves, by Adam with a rate that falls to 0 along a cosine; of the start and some answers
    on the way the one with the best bound under common noise is kept, and scored, beside the
    guide's, with fresh noise. With more steps the approximation gap falls, the other rises. The
    search is local: a better mode elsewhere is missed by the best bound, and by evidence from
    importance samples of it, so compare `annealed_evidence` from the prior.

    Args:
      guide: of a local latent; refined guides are judged refined.
      steps: of the search.
      rate: of Adam, at the start.
      fit_samples: K of its bounds.
      rule: of its gradients; None: `rules.doubly_reparameterized()`. Such as
        `rules.enumerated()` or `rules.score()` for discrete families.
      num_samples: S of the bounds, and of the evidence where it is estimated.
      evidence: (key, batch) -> log p(x_i), such as `annealed_evidence(...).evidence`; None: the
        model's own where it is exact, else S importance samples from the best q.
      chunk_size: data at once.

    Raises:
      ValueError: if there is a global latent, if the rule would be wrong for the family, or if a
        number is impossible.
    """
    if set(guide.families) != {"z"}:
        raise ValueError(
            "inference_gap is for a local latent alone. Of a global one there is nothing to "
            "amortize: its approximation gap is log_evidence(...).log_evidence less .elbo."
        )
    check_samples("inference_gap", num_samples)
    check_rows(guide, batch)
    check_data(model.check, batch.x)
    chosen = doubly_reparameterized() if rule is None else rule
    search = _ascent(chosen, guide, steps, rate, fit_samples)
    fit_key, evidence_key = jax.random.split(key)
    stated = model.log_evidence
    known = evidence or (None if stated is None else _exact(stated, params.theta))

    def run(part: Batch) -> Gaps:
        here = at_hand(guide, params, part)
        weights = _both(
            fit_key, here, part, model=model, guide=guide, search=search, num_samples=num_samples
        )
        own, best = map(np.asarray, weights)
        found = evidence_of(best) if known is None else known(evidence_key, part)
        return _gaps(own, best, found, same=known is None)

    return by_chunks(run, batch, chunk_size)


def _gaps(own: np.ndarray, best: np.ndarray, evidence: Evidence, *, same: bool) -> Gaps:
    """Of log-weights [b, S] of the guide's and of the best q, under the same noise.

    Args:
      same: is the evidence that of the best q's weights?
    """
    bound, found = mean(own), mean(best)
    value = np.asarray(evidence.log_evidence, np.float64) - found.value
    if same:  # log mean w - mean log w: the errors of the two are not independent
        relative = np.exp(best - log_mean_exp(best)[:, None]) - best
        error = mean(relative).standard_error
    else:
        error = np.hypot(found.standard_error, np.asarray(evidence.standard_error))
    four = (found, bound, Estimated(value, error), mean(best - own))
    return Gaps(evidence, *jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(own.dtype)), four))


def _exact(
    stated: Callable[[PyTree, PyTree], Scalar], theta: PyTree
) -> Callable[[Key, Batch], Evidence]:
    """What the model states, without error."""

    def evidence(key: Key, batch: Batch) -> Evidence:
        exact = jax.vmap(lambda x: stated(theta, x))(batch.x)
        none = jnp.zeros_like(exact)
        return Evidence(exact, exact, none, exact, none - jnp.inf, none == 0.0)

    return evidence


def _ascent(rule: Rule, guide: Guide, steps: int, rate: float, num_samples: int) -> Ascent:
    """Settings of the search, if they mean something for this guide."""
    if steps < 1 or not rate > 0.0 or num_samples < 1:
        raise ValueError(
            f"inference_gap(steps={steps}, rate={rate}, fit_samples={num_samples}): give at least "
            "1 step, a positive rate and at least 1 sample."
        )
    rule.check(guide.families["z"], elbo, num_samples, None)
    kept = jax.eval_shape(lambda: (rule.init(jax.random.key(0)), rule.init_state()))
    if jax.tree.leaves(kept):
        raise ValueError(
            f"inference_gap: {rule.name} learns or remembers something, which the search has no "
            "place for. Write doubly_reparameterized(), enumerated() or score()."
        )
    return Ascent(rule, steps, rate, num_samples)


@functools.partial(jax.jit, static_argnames=("model", "guide", "search", "num_samples"))
def _both(
    key: Key,
    params: Params,
    batch: Batch,
    *,
    model: Model,
    guide: Guide,
    search: Ascent,
    num_samples: int,
) -> tuple[Array, Array]:
    """Log-weights [b, S] of the guide's q and of the best, each with the same noise."""

    def integrand(x: PyTree) -> Integrand:
        return lambda s: log_local(model, params.theta, None, s.z, x)[0] - s.log_q

    def body(key: Key, q: Q, f: Integrand, x: PyTree) -> tuple[Array, Array]:
        fit_key, choice_key, score_key = jax.random.split(key, 3)

        def log_weights(lam: PyTree, key: Key) -> Array:
            z, log_q = transports(q.family, lam, q.family.noise(key, num_samples))
            return jax.vmap(f)(Sample(z, log_q, jax.random.split(key, num_samples)))

        candidates = _ascend(fit_key, q, f, search)
        bounds = jax.lax.map(lambda lam: jnp.mean(log_weights(lam, choice_key)), candidates)
        first = jnp.argmax(jnp.where(jnp.isnan(bounds), -jnp.inf, bounds))
        best = jax.tree.map(lambda leaf: leaf[first], candidates)
        return log_weights(q.lam, score_key), log_weights(best, score_key)

    return over_data(guide, params.phi, key, batch, integrand, body)


def _ascend(key: Key, q: Q, f: Integrand, search: Ascent) -> PyTree:
    """The start and answers along the ascent of the ELBO of one datum, leaves [1 + CANDIDATES]."""
    between = -(-search.steps // CANDIDATES)
    adam = optax.adam(optax.cosine_decay_schedule(search.rate, CANDIDATES * between))
    setting = Setting(elbo, search.num_samples)

    def loss(lam: PyTree, key: Key) -> Array:
        return -search.rule.surrogate(key, Q(q.family, lam), f, setting)[0]

    def step(carry: tuple, key: Key) -> tuple[tuple, None]:
        lam, state = carry
        updates, state = adam.update(jax.grad(loss)(lam, key), state, lam)
        return (optax.apply_updates(lam, updates), state), None

    def stretch(carry: tuple, key: Key) -> tuple[tuple, PyTree]:
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key, between))
        return carry, carry[0]

    keys = jax.random.split(key, CANDIDATES)
    _, along = jax.lax.scan(stretch, (q.lam, adam.init(q.lam)), keys)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), q.lam, along)
