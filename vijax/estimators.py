"""Estimators: bind model, guide, objective, rules, samples and data size into `init` and
`estimate`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vijax import tables
from vijax.guides import located
from vijax.nest import Level, NumSamples, Objectives, nest
from vijax.objectives import elbo, is_linear
from vijax.rules import Rules
from vijax.shapes import add_terms, is_batch, with_terms
from vijax.types import (
    Batch,
    Estimate,
    Estimator,
    Guide,
    Key,
    LamSpace,
    Model,
    Params,
    PyTree,
    Sample,
    Scalar,
)

EVALUATION = "log_joint"
"""The name that marks an evaluation of the log-joint in a traced program: `lab.evaluations` counts
it.
"""

Estimating = Callable[[Key, Params, PyTree, Batch], tuple[Estimate, PyTree]]


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

    The bound is sum_i bound_i for local latents (each with its own K samples), or E_q(w)[log p(w) -
    log q(w) + sum_i ...] with a global one; a minibatch's sum is scaled by N / B here and nowhere
    else. A datum's noise is `fold_in(key, index)`: the gradients of the minibatches of one epoch
    average to the full-data gradient exactly.

    Args:
      objective: log_w [K] -> []; with both latents a dict {"w": ..., "z": ...}, or one for the
        outer (w), with ELBO inside.
      rules: a rule, a dict per block of a product family, and with both latents a dict {"w": ...,
        "z": ...} of those.
      num_samples: K; with both latents a dict, or an int: K joint samples.
      num_data: N, the size of the whole data set. There is no default: a silent N = B is a wrong
        posterior.

    Raises:
      ValueError: at once, if the combination would be silently wrong; the message says what to
        write instead.
    """
    levels = nest(model, guide, objective, rules, num_samples, num_data)
    estimate_rows = _estimating(_bound(model, guide, levels, num_data), levels)

    def estimate(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
        is_table = param_tables(params)
        table, rest = tables.split(is_table, params)
        rows = tables.join(tables.gather(table, batch.index), rest)
        result, state = estimate_rows(key, rows, state, batch)
        row_grads, rest_grads = tables.split(is_table, result.grads)
        dense = jax.tree.map(
            lambda leaf, g: jnp.zeros_like(leaf).at[batch.index].add(g), table, row_grads
        )
        return result._replace(grads=tables.join(dense, rest_grads)), state

    def param_tables(params: Params) -> Params:
        false = jax.tree.map(lambda leaf: False, params)
        return false._replace(phi=guide.tables(params.phi))

    def locate(params: Params, batch: Batch) -> Params:
        table, rest = tables.split(param_tables(params), params)
        phi = tables.join(tables.gather(table, batch.index), rest).phi
        axes = jax.tree.map(lambda is_table: 0 if is_table else None, guide.tables(phi))
        local = (
            {"z": jax.vmap(guide.locate_z, in_axes=(axes, 0))(phi, batch.x)}
            if "z" in levels
            else {}
        )
        lam = local | ({"w": guide.locate_w(phi)} if "w" in levels else {})
        return params._replace(phi=lam if len(lam) == 2 else next(iter(lam.values())))

    def init_params(key: Key) -> Params:
        keys = jax.random.split(key, 2 + len(levels))
        control = {
            name: level.rule.init(k)
            for (name, level), k in zip(levels.items(), keys[2:], strict=True)
        }
        return Params(model.init(keys[0]), guide.init(keys[1]), control)

    def init(key: Key, params: Params) -> PyTree:
        return {name: level.rule.init_state() for name, level in levels.items()}

    # Compiled as one program: eager initialisation is dozens of tiny compilations, most of a slow
    # first step.
    lam_space = LamSpace(
        locate, _estimating(_bound(model, located(guide), levels, num_data), levels)
    )
    return Estimator(
        jax.jit(init_params), init, estimate, estimate_rows, param_tables, num_data, lam_space
    )


def _bound(model: Model, guide: Guide, levels: Mapping[str, Level], num_data: int):
    """(params with tables of the batch's rows, key, state, batch) -> (the bound on all data, its
    statistics).
    """

    def log_local(
        theta: PyTree, w: PyTree, z: PyTree, x: PyTree
    ) -> tuple[Scalar, dict[str, Scalar]]:
        value, terms = with_terms(model.log_local(theta, w, z, x), "log_local")
        return checkpoint_name(value, EVALUATION), terms

    def local_term(
        key: Key, theta: PyTree, w: PyTree, phi_i: PyTree, x: PyTree, control: PyTree, state: PyTree
    ):
        level = levels["z"]
        prior = (
            model.prior_z.locate(theta, w)
            if level.uses_prior and model.prior_z is not None
            else None
        )

        def integrand(sample: Sample) -> tuple[Scalar, PyTree]:
            value, terms = log_local(theta, w, sample.z, x)
            return value - sample.log_q, terms

        return level.rule.surrogate(
            key,
            level.family,
            guide.locate_z(phi_i, x),
            integrand,
            objective=level.objective,
            num_samples=level.num_samples,
            control=control,
            state=state,
            x=x,
            prior=prior,
        )

    def data_term(
        key: Key, params: Params, state: PyTree, batch: Batch, w: PyTree
    ) -> tuple[Scalar, PyTree]:
        theta, scale = params.theta, num_data / batch.index.shape[0]
        if "z" in levels:
            rows = jax.tree.map(lambda is_table: 0 if is_table else None, guide.tables(params.phi))
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.index)
            control, state_z = params.control["z"], state["z"]
            terms, aux = jax.vmap(
                lambda k, phi, x: local_term(k, theta, w, phi, x, control, state_z),
                in_axes=(0, rows, 0),
            )(keys, params.phi, batch.x)
            aux = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), aux)
        else:
            terms, aux = jax.vmap(lambda x: log_local(theta, w, None, x))(batch.x)
            aux = {name: scale * jnp.sum(term) for name, term in aux.items()}
        return scale * jnp.sum(terms), aux

    def bound(params: Params, key: Key, state: PyTree, batch: Batch) -> tuple[Scalar, PyTree]:
        if "w" not in levels:
            value, aux = data_term(key, params, state, batch, None)
            return value, {"z": aux.stats}
        level = levels["w"]
        if not is_linear(level.objective) and batch.index.shape[0] != num_data:
            raise ValueError(
                f"a non-linear objective over the global latent w with a minibatch of "
                f"{batch.index.shape[0]} of {num_data} "
                "data: the objective of a scaled subsample is no bound. Use the full batch, or "
                "objective=elbo for w."
            )

        def integrand(sample: Sample) -> tuple[Scalar, PyTree]:
            value, aux = data_term(sample.key, params, state, batch, sample.z)
            prior, terms = with_terms(model.log_prior(params.theta, sample.z), "log_prior")
            return prior + value - sample.log_q, aux if "z" in levels else add_terms(terms, aux)

        prior = (
            model.prior_w.locate(params.theta)
            if level.uses_prior and model.prior_w is not None
            else None
        )
        value, aux = level.rule.surrogate(
            key,
            level.family,
            guide.locate_w(params.phi),
            integrand,
            objective=level.objective,
            num_samples=level.num_samples,
            control=params.control["w"],
            state=state["w"],
            prior=prior,
        )
        return value, {"w": aux.stats} | ({"z": aux.inner.stats} if "z" in levels else {})

    return bound


def _estimating(
    bound: Callable[..., tuple[Scalar, PyTree]], levels: Mapping[str, Level]
) -> Estimating:
    """Loss and gradients of a bound, and the rules' next state."""

    def loss(params: Params, key: Key, state: PyTree, batch: Batch) -> tuple[Scalar, PyTree]:
        value, stats = bound(params, key, state, batch)
        return -value, stats

    def estimate_rows(
        key: Key, params: Params, state: PyTree, batch: Batch
    ) -> tuple[Estimate, PyTree]:
        _check_batch(batch)
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, key, state, batch)
        updated = {
            name: level.rule.update(state[name], stats[name]) for name, level in levels.items()
        }
        return Estimate(value, grads, stats), updated

    return estimate_rows


def split(*, theta: Estimator, phi: Estimator) -> Estimator:
    """Different estimators for model and guide: theta's gradient from one, phi's and its baselines'
    from the other.

    Both see the same key, hence the same samples where they draw the same way, and the compiler
    shares what they share. The loss reported is theta's. params.control and the state are dicts
    {"theta": ..., "phi": ...}.

    Raises:
      ValueError: if the two are for data sets of different size.
    """
    if theta.num_data != phi.num_data:
        raise ValueError(
            f"split: num_data differs, {theta.num_data} for theta and {phi.num_data} for phi."
        )

    def pick(params: Params, name: str) -> Params:
        return params._replace(control=params.control[name])

    def init_params(key: Key) -> Params:
        ours, theirs = theta.init_params(key), phi.init_params(key)
        return ours._replace(control={"theta": ours.control, "phi": theirs.control})

    def init(key: Key, params: Params) -> PyTree:
        return {
            "theta": theta.init(key, pick(params, "theta")),
            "phi": phi.init(key, pick(params, "phi")),
        }

    def both(ours_of: Estimating, theirs_of: Estimating) -> Estimating:
        def run(key: Key, params: Params, state: PyTree, batch: Batch) -> tuple[Estimate, PyTree]:
            ours, state_theta = ours_of(key, pick(params, "theta"), state["theta"], batch)
            theirs, state_phi = theirs_of(key, pick(params, "phi"), state["phi"], batch)
            control = {"theta": ours.grads.control, "phi": theirs.grads.control}
            grads = Params(ours.grads.theta, theirs.grads.phi, control)
            return Estimate(ours.loss, grads, {"theta": ours.aux, "phi": theirs.aux}), {
                "theta": state_theta,
                "phi": state_phi,
            }

        return run

    def param_tables(params: Params) -> Params:
        control = jax.tree.map(lambda leaf: False, params.control)
        return theta.tables(pick(params, "theta"))._replace(control=control)

    lam_space = None
    if theta.lam_space is not None and phi.lam_space is not None:
        locate = phi.lam_space.locate
        lam_space = LamSpace(
            lambda params, batch: params._replace(phi=locate(pick(params, "phi"), batch).phi),
            both(theta.lam_space.estimate, phi.lam_space.estimate),
        )
    return Estimator(
        jax.jit(init_params),
        init,
        both(theta.estimate, phi.estimate),
        both(theta.estimate_rows, phi.estimate_rows),
        param_tables,
        theta.num_data,
        lam_space,
    )


def _check_batch(batch: Batch) -> None:
    is_batch(batch)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"the leaves of a batch differ in their leading axis: {sorted(map(str, sizes))}."
        )
    if 0 in sizes:
        raise ValueError("the batch is empty: the gradient of no data has no N / B scale.")
