"""Estimators: bind model, guide, objective, rules, samples and data size into one `estimate`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vijax import rows
from vijax.estimators.nest import Level, NumSamples, Objectives, nest
from vijax.estimators.program import program_check
from vijax.estimators.target import Schedule, as_schedule, log_joint, log_prior, log_weight
from vijax.guides import global_q, locate, over_data
from vijax.inference import Estimate, Estimator, Guide, Model
from vijax.objectives import elbo
from vijax.rules import Rules
from vijax.shapes import check_batch, check_data, check_key
from vijax.types import Batch, Integrand, Key, Params, PyTree, Q, Sample, Scalar, Setting


def estimator(
    model: Model,
    guide: Guide,
    *,
    objective: Objectives = elbo,
    rules: Rules,
    num_samples: NumSamples = 1,
    num_data: int,
    learn_theta: bool = True,
    kl_weight: float | Schedule = 1.0,
) -> Estimator:
    """Bind everything that defines a stochastic gradient of a bound on log p(x_1..x_N).

    The bound is sum_i bound_i for local latents (each with its own K samples), or E_q(w)[log p(w) -
    log q(w) + sum_i ...] with a global one; a minibatch's sum is scaled by N / B. A datum's noise
    is `fold_in(key, index)`: the gradients of the minibatches of one epoch average to the full-data
    gradient exactly.

    Args:
      objective: an `Objective` or a function log_w [K] -> []; with both latents a dict
        {"w": ..., "z": ...}, or one for the outer (w), with ELBO inside.
      rules: a rule, a dict per block of a product family, and with both latents a dict
        {"w": ..., "z": ...} of those.
      num_samples: K; with both latents a dict, or an int: K joint samples.
      num_data: N, the size of the whole data set. There is no default: a silent N = B is a wrong
        posterior.
      learn_theta: False gives the model's parameters a gradient of zero (an optimiser with weight
        decay would move them all the same): for bounds from above, which only phi may follow;
        `split` takes theta's gradient from elsewhere.
      kl_weight: multiplies log prior - log q in every log-weight, the KL of the ELBO: a number, or
        a function of the number of estimates made so far, such as an optax schedule for a warm-up
        (Bowman et al. 2016; Sonderby et al. 2016), which is counted in the estimator's state. What
        is estimated and reported is then the annealed objective, for weights below 1 no bound on
        log p(x); above 1 that of Higgins et al. 2017. A local latent needs its prior stated.

    Raises:
      ValueError: at once, if the combination would be silently wrong; the message says what to
        write instead.
    """
    plain = not callable(kl_weight) and kl_weight == 1.0
    levels = nest(model, guide, objective, rules, num_samples, num_data, plain=plain)
    _check_theta(model, levels, learn_theta=learn_theta)
    bound = _bound(model, guide, levels, num_data, as_schedule(kl_weight))
    check_program = program_check(model, levels, num_data)

    def loss(params: Params, key: Key, state: PyTree, batch: Batch) -> tuple[Scalar, PyTree]:
        theta = params.theta if learn_theta else jax.lax.stop_gradient(params.theta)
        value, stats = bound(params._replace(theta=theta), key, state, batch)
        return -value, stats

    def estimate(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
        check_batch(batch, num_data)
        _check_tables(guide, params.phi)
        check_key(key)
        check_data(model.check, batch.x)
        check_program(params.theta, batch)
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, stats), grads = differentiate(params, key, state, batch)
        updated = {n: level.rule.update(state[n], stats[n]) for n, level in levels.items()}
        if "step" in state:
            updated["step"] = state["step"] + 1
        return Estimate(loss=value, grads=grads, aux=stats), updated

    def init_params(key: Key) -> Params:
        model_key, guide_key, *keys = jax.random.split(key, 2 + len(levels))
        control = {
            name: level.rule.init(k) for (name, level), k in zip(levels.items(), keys, strict=True)
        }
        return Params(theta=model.init(model_key), phi=guide.init(guide_key), control=control)

    def init(key: Key, params: Params) -> PyTree:
        counted = {"step": jnp.zeros((), jnp.int32)} if callable(kl_weight) else {}
        return {name: level.rule.init_state() for name, level in levels.items()} | counted

    def is_table(params: Params) -> Params:
        false = jax.tree.map(lambda leaf: False, params)
        return false._replace(phi=guide.is_table(params.phi))

    # Compiled as one program: eager initialisation is dozens of tiny compilations, most of a slow
    # first step.
    return Estimator(
        init_params=jax.jit(init_params),
        init=init,
        estimate=estimate,
        is_table=is_table,
        num_data=num_data,
        locate=lambda params, batch: params._replace(phi=locate(guide, params.phi, batch)),
        check=model.check,
    )


def estimator_from(
    estimate: Callable[[Key, Params, PyTree, Batch], tuple[Estimate, PyTree]],
    init_params: Callable[[Key], Params],
    *,
    num_data: int,
    init: Callable[[Key, Params], PyTree] = lambda key, params: (),
    is_table: Callable[[Params], Params] | None = None,
) -> Estimator:
    """An estimator with a gradient made by hand: `fit` follows, and the lab measures, that one.

    To change what an estimator of `vijax.estimator` estimates, replace its field:
    `est._replace(estimate=mine)`.

    Args:
      estimate: (key, params, state, batch) -> (Estimate, state); its loss and grads go down.
      is_table: params -> bool per leaf, for leaves with one row per datum; `estimate` is then given
        `params.phi` as `rows.Rows`, tables of the batch's rows, and returns its gradient so. None:
        there are no tables.
    """
    return Estimator(
        init_params=jax.jit(init_params),
        init=init,
        estimate=estimate,
        is_table=_no_tables if is_table is None else is_table,
        num_data=num_data,
    )


def _check_tables(guide: Guide, phi: PyTree) -> None:
    """Refuse tables of another size than the guide's, whose rows would be other data's."""
    if guide.num_data is None or isinstance(phi, rows.Rows | rows.Lam):
        return
    rows.check_tables(rows.split(guide.is_table(phi), phi)[0], guide.num_data)


def _no_tables(params: Params) -> Params:
    return jax.tree.map(lambda leaf: False, params)


def _bound(
    model: Model, guide: Guide, levels: Mapping[str, Level], num_data: int, kl_weight: Schedule
) -> Callable[[Params, Key, PyTree, Batch], tuple[Scalar, PyTree]]:
    """(params, key, state, batch) -> (the bound on all data, its statistics)."""

    def local_terms(
        key: Key, params: Params, state: PyTree, batch: Batch, w: PyTree
    ) -> tuple[Scalar, Any]:
        """(N / B times the data's bounds given w, the rule's statistics, averaged)."""
        level, theta = levels["z"], params.theta
        stated = model.priors["z"].locate(theta, w) if level.uses_prior else None
        weight = kl_weight(state.get("step"))

        def integrand(x: PyTree) -> Integrand:
            def at(sample: Sample) -> tuple[Scalar, PyTree]:
                return log_weight(model, theta, w, sample, x, stated, weight)

            return at

        def body(key: Key, q: Q, f: Integrand, x: PyTree) -> tuple[Scalar, Any]:
            return level.rule.surrogate(
                key, q, f, _setting(level, params.control["z"], state["z"], x, stated)
            )

        terms, aux = over_data(guide, params.phi, key, batch, integrand, body)
        averaged = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), aux)
        return rows.weight(num_data, batch) * jnp.sum(terms), averaged

    def bound(
        params: Params, key: Key, state: PyTree, batch: Batch
    ) -> tuple[Scalar, dict[str, PyTree]]:
        if "w" not in levels:
            value, aux = local_terms(key, params, state, batch, None)
            return value, {"z": aux.stats}
        level, theta = levels["w"], params.theta
        if not level.objective.linear and batch.index.shape[0] != num_data:
            raise ValueError(
                "a non-linear objective over the global latent w with a minibatch of "
                f"{batch.index.shape[0]} of {num_data} data: the objective of a scaled subsample "
                "is no bound. Use the full batch, or objective=elbo for w."
            )

        weight = kl_weight(state.get("step"))

        def integrand(sample: Sample) -> tuple[Scalar, PyTree]:
            if "z" not in levels:
                value, aux = log_joint(model, theta, sample.z, batch, num_data, weight)
            else:
                value, aux = local_terms(sample.key, params, state, batch, sample.z)
                value = weight * log_prior(model, theta, sample.z)[0] + value
            return value - weight * sample.log_q, aux

        stated = model.priors["w"].locate(theta) if level.uses_prior else None
        setting = _setting(level, params.control["w"], state["w"], None, stated)
        value, aux = level.rule.surrogate(key, global_q(guide, params.phi), integrand, setting)
        return value, {"w": aux.stats} | ({"z": aux.inner.stats} if "z" in levels else {})

    return bound


def _setting(level: Level, control: PyTree, state: PyTree, x: PyTree, prior: PyTree) -> Setting:
    return Setting(
        objective=level.objective,
        num_samples=level.num_samples,
        control=control,
        state=state,
        x=x,
        prior=prior,
    )


def _check_theta(model: Model, levels: Mapping[str, Level], *, learn_theta: bool) -> None:
    """Refuse to let theta ascend a bound from above."""
    upper = [lv.objective.name for lv in levels.values() if not lv.objective.moves_theta]
    if not (upper and learn_theta):
        return
    if jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))):
        raise ValueError(
            f"objective {upper[0]} bounds log p(x) from above, so theta would be moved to lower "
            "the evidence. Write learn_theta=False to hold the model fixed, and to learn it beside "
            "split(theta=estimator(..., objective=elbo), phi=estimator(..., learn_theta=False))."
        )
