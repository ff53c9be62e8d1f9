"""Expectation maximisation: coordinate ascent on the ELBO in q(z_i) and theta."""

import functools
from collections.abc import Callable

import jax
import optax

from vijax.algorithms.coordinate import (
    Halves,
    Rate,
    Shared,
    Turn,
    by_statistics,
    check_rate,
    coordinate_ascent,
)
from vijax.algorithms.e_step import EStep, exact_rules, finite_posterior
from vijax.estimators import estimator, log_local
from vijax.families import lam_like
from vijax.inference import Algorithm, Estimate, Guide, Model
from vijax.models.traits import SufficientStatistics
from vijax.rows import Lam
from vijax.shapes import same_shapes
from vijax.types import Array, Batch, Family, Key, Params, PyTree, Q, Sample, Scalar


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def em(
    model: Model,
    guide: Guide,
    *,
    num_data: int,
    rate: Rate | None = None,
    e_step: EStep | None = None,
    optimizer: optax.GradientTransformation | None = None,
    m_steps: int = 1,
) -> Algorithm:
    """Each step puts q(z_i) of the batch's data at the exact posterior (E), then theta at the
    maximum of E_q[log p(z, x | theta)] (M). Dempster et al. 1977.

    On the full data set the log-likelihood never falls. On minibatches the statistics of the
    batch's rows are exchanged in the total, and the bound on all data never falls once every row
    was visited (incremental EM, Neal and Hinton 1998); until then a row counts as the average datum
    of the first theta. With a `rate` they are averaged over the steps instead (online EM, Cappe and
    Moulines 2009), for which any guide of z will do: rows are kept where there are some.

    A step's loss is minus the ELBO between its halves, on all data, which is the log-likelihood of
    the theta before it; of a minibatch, scaled by N / B. With a `e_step` that ends elsewhere it
    is the bound itself, exact for finite supports, otherwise of one draw. The rows are those of the
    E-step: posteriors at the theta before.

    Args:
      model: with local latents alone. The M-step is its `SufficientStatistics`.
      guide: `guides.per_datapoint(family, N)` of the posterior's family; `fit` starts at
        `vijax.Params(theta, guide.init(key), ())`.
      num_data: N.
      rate: of online EM, in (0, 1], or a schedule of the step's number such as
        `lambda t: (t + 1.0) ** -0.6`.
      e_step: what an E-step does instead: (key, lam, integrand) -> lam of one datum, the
        integrand being log p(z, x) - log q(z), as in `Guide.refine`. `algorithms.natural_ascent`,
        or the `refine` of a semi-amortized guide, stay inside q's family: variational EM.
        None: `Model.posterior`, or enumeration for a `categorical`.
      optimizer: of theta, for gradient M-steps; needs no trait. With the exact E-step its gradient
        is that of the log-likelihood. By one draw of z where q has no finite support.
      m_steps: of the optimizer, per M-step.

    Raises:
      ValueError: if the model has a global latent, no known posterior or no known M-step.
    """
    if model.latents != ("z",) or set(guide.families) != {"z"}:
        raise ValueError(
            "em is for local latents z alone, with theta at its maximum: a latent_model with "
            "guides.per_datapoint(family, N). With a global latent w write algorithms.cavi."
        )
    family, statistics = guide.families["z"], model.traits.get(SufficientStatistics)
    go = _first_half(model, family, e_step)
    bound = estimator(model, guide, rules=exact_rules(family), num_data=num_data)
    like = jax.eval_shape(bound.init_params, jax.random.key(0))

    def estimate(key: Key, theta: PyTree, lam: PyTree, batch: Batch) -> Estimate:
        view = Params(theta, Lam({"z": lam}), like.control)
        return bound.estimate(key, view, bound.init(key, view), batch)[0]

    def loss(key: Key, params: Params, turn: Turn) -> Scalar:
        return estimate(key, params.theta, turn.after, turn.batch).loss

    if optimizer is None and m_steps != 1:
        raise ValueError(
            f"em(m_steps={m_steps!r}) counts the steps of an optimizer, and there is none: the "
            "closed-form M-step ends at the maximum at once. Leave m_steps out, or give "
            "optimizer=optax.adam(...)."
        )
    if optimizer is not None:
        if rate is not None:
            raise ValueError(
                "em: a rate averages the statistics of a closed-form M-step; gradient M-steps have "
                "none. Leave out one of rate and optimizer: the optimizer has its own rate."
            )
        start, shared = _by_gradient(estimate, optimizer, m_steps)
        how = "optimizer"
    elif statistics is not None:
        check_rate("em", rate, guide)

        def move(params: Params, mean: PyTree) -> Params:
            theta = statistics.maximize(params.theta, mean)
            same_shapes(
                theta, params.theta, "em: theta, as SufficientStatistics.maximize makes it,"
            )
            return params._replace(theta=theta)

        start, shared = by_statistics(
            guide,
            statistics.statistics,
            lambda params: statistics.expected(params.theta),
            move,
            rate=rate,
            num_data=num_data,
        )
        how = "exact" if rate is None else "rate"
    else:
        raise ValueError(
            f"em: {SufficientStatistics.refusal}. Give optimizer=optax.adam(...) for gradient "
            "M-steps, or the model its traits=[SufficientStatistics(...)]."
        )
    halves = Halves(lambda key, params, q, x: go(key, params.theta, q, x), loss, start, shared)
    name = f"em({family.name}, {how})"
    return coordinate_ascent(name, guide, halves, num_data=num_data, check=model.check)


def _first_half(
    model: Model, family: Family, e_step: EStep | None
) -> Callable[[Key, PyTree, Q, PyTree], PyTree]:
    """(key, theta, q of z_i, x_i) -> lam."""
    found = finite_posterior(family) if e_step is None else e_step
    posterior = model.posterior if e_step is None else None
    if posterior is None and found is None:
        raise ValueError(
            f"em: the exact posterior is not known: the model states none, and {family.name} is no "
            "categorical(C), whose C values are summed. Give the model its posterior=..., or "
            "e_step=algorithms.natural_ascent(family), or write vijax.descent."
        )

    def go(key: Key, theta: PyTree, q: Q, x: PyTree) -> PyTree:
        if posterior is not None:
            lam = posterior(theta, x)
        else:
            assert found is not None

            def integrand(sample: Sample) -> Scalar:
                return log_local(model, theta, None, sample.z, x)[0] - sample.log_q

            lam = found(key, q.lam, integrand)
        _check_lam(lam, family)
        return lam

    return go


def _check_lam(lam: PyTree, family: Family) -> None:
    """Refuse an E-step's answer that is of another family than the guide's."""
    given, wanted = (
        jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (lam, lam_like(family))
    )
    if given != wanted:
        raise ValueError(
            f"em: the E-step gives lam of shapes {given}, but the guide's {family.name} has "
            f"{wanted}. Use the posterior's own family, or stay inside the guide's: "
            "e_step=algorithms.natural_ascent(family)."
        )


def _by_gradient(
    estimate: Callable[[Key, PyTree, PyTree, Batch], Estimate],
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> tuple[Callable[[Params], PyTree], Shared]:
    """(start, shared): steps of an optimiser on the bound at the new q."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"em(m_steps={num_steps!r}): give an int of at least 1.")

    def shared(key: Key, state: PyTree, params: Params, turn: Turn) -> tuple[Params, PyTree]:
        def go(number: Array | int, moving: PyTree) -> PyTree:
            theta, state = moving
            seen = estimate(jax.random.fold_in(key, number), theta, turn.after, turn.batch)
            updates, state = optimizer.update(seen.grads.theta, state, theta)
            return optax.apply_updates(theta, updates), state

        theta, state = jax.lax.fori_loop(0, num_steps, go, (params.theta, state))
        return params._replace(theta=theta), state

    return lambda params: optimizer.init(params.theta), shared
