"""Estimators: bind model, guide, objective, rules, samples and data size into `init` and `estimate`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vijax import tables
from vijax.families import z_like
from vijax.objectives import elbo, is_linear
from vijax.rules import Rules, as_rule
from vijax.rules.mixed import check_nesting, spread_samples
from vijax.shapes import is_batch
from vijax.types import (
    Batch,
    Estimate,
    Estimator,
    Family,
    Guide,
    Key,
    Model,
    Objective,
    Params,
    PyTree,
    Rule,
    Sample,
    Scalar,
)

Objectives = Objective | Mapping[str, Objective]
NumSamples = int | Mapping[str, Any]


def estimator(
    model: Model,
    guide: Guide,
    *,
    objective: Objectives = elbo,
    rules: Rules,
    num_samples: NumSamples = 1,
    num_data: int,
) -> Estimator:
    """Bind everything that defines a stochastic gradient of a bound on log p(x_1..x_N).

    The bound is sum_i bound_i for local latents (each with its own K samples), or E_q(w)[log p(w) - log q(w) + sum_i ...]
    with a global one; a minibatch's sum is scaled by N / B here and nowhere else. A datum's noise is
    `fold_in(key, index)`: the gradients of the minibatches of one epoch average to the full-data gradient exactly.

    Args:
      objective: log_w [K] -> []; with both latents a dict {"w": ..., "z": ...}, or one for the outer (w), with ELBO inside.
      rules: a rule, a dict per block of a product family, and with both latents a dict {"w": ..., "z": ...} of those.
      num_samples: K; with both latents a dict, or an int: K joint samples.
      num_data: N, the size of the whole data set. There is no default: a silent N = B is a wrong posterior.

    Raises:
      ValueError: at once, if the combination would be silently wrong; the message says what to write instead.
    """
    _check_latents(model, guide, num_data)
    levels = _levels(model, guide, objective, rules, num_samples)

    def local_term(key: Key, theta: PyTree, w: PyTree, phi_i: PyTree, x: PyTree, control: PyTree, state: PyTree):
        level = levels["z"]
        prior = model.prior_z.locate(theta, w) if level.uses_prior and model.prior_z is not None else None
        return level.rule.surrogate(
            key, level.family, guide.locate_z(phi_i, x), lambda s: model.log_local(theta, w, s.z, x) - s.log_q,
            objective=level.objective, num_samples=level.num_samples, control=control, state=state, x=x, prior=prior,
        )  # fmt: skip

    def data_term(key: Key, params: Params, state: PyTree, batch: Batch, w: PyTree) -> tuple[Scalar, PyTree]:
        theta, aux = params.theta, ()
        if "z" in levels:
            rows = jax.tree.map(lambda is_table: 0 if is_table else None, guide.tables(params.phi))
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.index)
            control, state_z = params.control["z"], state["z"]
            terms, aux = jax.vmap(lambda k, phi, x: local_term(k, theta, w, phi, x, control, state_z), in_axes=(0, rows, 0))(
                keys, params.phi, batch.x
            )
            aux = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), aux)
        else:
            terms = jax.vmap(lambda x: model.log_local(theta, w, None, x))(batch.x)
        return num_data / batch.index.shape[0] * jnp.sum(terms), aux

    def bound(params: Params, key: Key, state: PyTree, batch: Batch) -> tuple[Scalar, PyTree]:
        if "w" not in levels:
            value, aux = data_term(key, params, state, batch, None)
            return value, {"z": aux.stats}
        level = levels["w"]
        if not is_linear(level.objective) and batch.index.shape[0] != num_data:
            raise ValueError(
                f"a non-linear objective over the global latent w with a minibatch of {batch.index.shape[0]} of {num_data} "
                "data: the objective of a scaled subsample is no bound. Use the full batch, or objective=elbo for w."
            )

        def integrand(sample: Sample) -> tuple[Scalar, PyTree]:
            value, aux = data_term(sample.key, params, state, batch, sample.z)
            return model.log_prior(params.theta, sample.z) + value - sample.log_q, aux

        prior = model.prior_w.locate(params.theta) if level.uses_prior and model.prior_w is not None else None
        value, aux = level.rule.surrogate(
            key, level.family, guide.locate_w(params.phi), integrand, objective=level.objective,
            num_samples=level.num_samples, control=params.control["w"], state=state["w"], prior=prior,
        )  # fmt: skip
        return value, {"w": aux.stats} | ({"z": aux.inner.stats} if "z" in levels else {})

    def loss(params: Params, key: Key, state: PyTree, batch: Batch) -> tuple[Scalar, PyTree]:
        value, stats = bound(params, key, state, batch)
        return -value, stats

    def estimate_rows(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
        _check_batch(batch)
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, key, state, batch)
        updated = {name: level.rule.update(state[name], stats[name]) for name, level in levels.items()}
        return Estimate(value, grads, stats), updated

    def estimate(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
        is_table = param_tables(params)
        table, rest = tables.split(is_table, params)
        rows = tables.join(tables.gather(table, batch.index), rest)
        result, state = estimate_rows(key, rows, state, batch)
        row_grads, rest_grads = tables.split(is_table, result.grads)
        dense = jax.tree.map(lambda leaf, g: jnp.zeros_like(leaf).at[batch.index].add(g), table, row_grads)
        return result._replace(grads=tables.join(dense, rest_grads)), state

    def param_tables(params: Params) -> Params:
        false = jax.tree.map(lambda leaf: False, params)
        return false._replace(phi=guide.tables(params.phi))

    def init_params(key: Key) -> Params:
        keys = jax.random.split(key, 2 + len(levels))
        control = {name: level.rule.init(k) for (name, level), k in zip(levels.items(), keys[2:], strict=True)}
        return Params(model.init(keys[0]), guide.init(keys[1]), control)

    def init(key: Key, params: Params) -> PyTree:
        return {name: level.rule.init_state() for name, level in levels.items()}

    # Compiled as one program: eager initialisation is dozens of tiny compilations, most of a slow first step.
    return Estimator(jax.jit(init_params), init, estimate, estimate_rows, param_tables, num_data)


def split(*, theta: Estimator, phi: Estimator) -> Estimator:
    """Different estimators for model and guide: theta's gradient from one, phi's and its baselines' from the other.

    Both see the same key, hence the same samples where they draw the same way, and the compiler shares what they share.
    The loss reported is theta's. params.control and the state are dicts {"theta": ..., "phi": ...}.

    Raises:
      ValueError: if the two are for data sets of different size.
    """
    if theta.num_data != phi.num_data:
        raise ValueError(f"split: num_data differs, {theta.num_data} for theta and {phi.num_data} for phi.")

    def pick(params: Params, name: str) -> Params:
        return params._replace(control=params.control[name])

    def init_params(key: Key) -> Params:
        ours, theirs = theta.init_params(key), phi.init_params(key)
        return ours._replace(control={"theta": ours.control, "phi": theirs.control})

    def init(key: Key, params: Params) -> PyTree:
        return {"theta": theta.init(key, pick(params, "theta")), "phi": phi.init(key, pick(params, "phi"))}

    def both(method: str):
        def run(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
            ours, state_theta = getattr(theta, method)(key, pick(params, "theta"), state["theta"], batch)
            theirs, state_phi = getattr(phi, method)(key, pick(params, "phi"), state["phi"], batch)
            control = {"theta": ours.grads.control, "phi": theirs.grads.control}
            grads = Params(ours.grads.theta, theirs.grads.phi, control)
            return Estimate(ours.loss, grads, {"theta": ours.aux, "phi": theirs.aux}), {"theta": state_theta, "phi": state_phi}

        return run

    def param_tables(params: Params) -> Params:
        control = jax.tree.map(lambda leaf: False, params.control)
        return theta.tables(pick(params, "theta"))._replace(control=control)

    return Estimator(jax.jit(init_params), init, both("estimate"), both("estimate_rows"), param_tables, theta.num_data)


class _Level(NamedTuple):  # one expectation of the nest: over the global w, or over a datum's z
    family: Family
    rule: Rule
    objective: Objective
    num_samples: Any
    uses_prior: bool


def _levels(model: Model, guide: Guide, objective: Objectives, rules: Rules, num_samples: NumSamples) -> dict[str, _Level]:
    """The nest, outermost first, with every setting spread over its levels and checked."""
    families = {name: family for name, family in (("w", guide.family_w), ("z", guide.family_z)) if family is not None}
    names = tuple(families)
    if not isinstance(rules, Rule | Mapping):
        raise ValueError(f"rules={rules!r} is no rule: write a call, as in pathwise(), or a dict of rules.")
    priors = {"w": model.prior_w, "z": model.prior_z}
    if len(names) == 1:
        chosen = {names[0]: as_rule(rules, families[names[0]])}
        objectives: dict[str, Any] = {names[0]: objective}
        counts = {names[0]: num_samples}
    else:
        per_level = rules if isinstance(rules, Mapping) else dict.fromkeys(names, rules)
        _check_names("rules", per_level, names)
        chosen = {name: as_rule(per_level[name], families[name]) for name in names}
        objectives = dict(objective) if isinstance(objective, Mapping) else {"w": objective, "z": elbo}
        _check_names("objective", objectives, names)
        counts = spread_samples(chosen, num_samples)
        check_nesting(chosen, objectives["w"])
    for name in names:
        if not callable(objectives[name]):
            raise ValueError(f"objective for {name!r} is {objectives[name]!r}: give a function log_w [K] -> [].")
        prior = priors[name]
        chosen[name].check(families[name], objectives[name], counts[name], None if prior is None else prior.family)
    return {
        name: _Level(families[name], chosen[name], objectives[name], counts[name], priors[name] is not None) for name in names
    }


def _check_names(what: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if set(given) != set(names):
        raise ValueError(f"{what} has entries {sorted(given)}, but the guide has latents {sorted(names)}: give one for each.")


def _check_latents(model: Model, guide: Guide, num_data: int) -> None:
    has = tuple(name for name, family in (("w", guide.family_w), ("z", guide.family_z)) if family is not None)
    if set(model.latents) != set(has):
        raise ValueError(
            f"the model has latents {model.latents}, the guide {has}. Use guides.shared for a global w, per_datapoint or "
            "amortized for a local z, hierarchical(w=..., z=...) for both."
        )
    if not isinstance(num_data, int) or num_data < 1:
        raise ValueError(f"num_data={num_data!r}: give the size of the whole data set, an int of at least 1.")
    if guide.num_data is not None and guide.num_data != num_data:
        raise ValueError(f"the guide's table has {guide.num_data} rows, but num_data={num_data}: they must be equal.")
    if guide.family_w is not None:
        family_w = guide.family_w
        shape = jax.eval_shape(
            lambda key: model.log_prior(model.init(key), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), z_like(family_w))),
            jax.random.key(0),
        ).shape
        if shape != ():
            raise ValueError(f"model.log_prior returns shape {shape} for one w, not []: sum over its elements.")


def _check_batch(batch: Batch) -> None:
    is_batch(batch)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"the leaves of a batch differ in their leading axis: {sorted(map(str, sizes))}.")
    if 0 in sizes:
        raise ValueError("the batch is empty: the gradient of no data has no N / B scale.")
