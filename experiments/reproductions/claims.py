"""What the reproductions share: claims with their verdict, columns for the arrays, and the gradient
of a plain expectation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from scipy import special

import vijax as vj
from vijax import lab
from vijax.estimators import EVALUATION
from vijax.objectives import elbo
from vijax.types import Array, Key, PyTree

MANY = 5.0  # standard errors at which a number disagrees
HALF_WIDTH = float(special.ndtri(0.975))  # of a 95 % interval, in standard errors
WIDE = float(special.ndtri(0.9995))  # of a 99.9 % interval


def claim(
    what: str,
    published: str | float,
    ours: Any,
    error: Any,
    source: str,
    *,
    agrees: bool | None = None,
) -> dict:
    """One row of the table. A number agrees if it is less than 5 standard errors away; words need a
    verdict of their own.
    """
    if agrees is None:
        if isinstance(published, str):
            raise ValueError(
                f"claim {what!r}: published={published!r} is no number, so say agrees=... yourself."
            )
        agrees = abs(ours - published) < MANY * error
    return {
        "what": what,
        "published": published,
        "ours": float(ours),
        "error": float(error),
        "agrees": bool(agrees),
        "source": source,
    }


def below(
    what: str, published: str, log_ratio: float, error: float, source: str, *, than: float = 0.0
) -> dict:
    """An ordering: the whole 95 % interval of a log10 ratio of variances lies below `than`."""
    return claim(
        what, published, log_ratio, error, source, agrees=log_ratio + HALF_WIDTH * error < than
    )


def not_above(what: str, published: str, log_ratio: float, error: float, source: str) -> dict:
    """A weak ordering: some of the 95 % interval of a log10 ratio of variances lies below 0."""
    return claim(
        what, published, log_ratio, error, source, agrees=log_ratio - HALF_WIDTH * error < 0.0
    )


def worst(
    what: str, published: np.ndarray, ours: np.ndarray, error: np.ndarray, source: str
) -> dict:
    """One claim for several points: the one that is most standard errors away speaks for all."""
    columns = [
        np.ravel(np.broadcast_to(column, np.shape(ours))) for column in (published, ours, error)
    ]
    i = int(np.argmax(np.abs(columns[1] - columns[0]) / np.maximum(columns[2], 1e-300)))
    return claim(what, float(columns[0][i]), columns[1][i], columns[2][i], source)


def log_ratios(
    comparison: lab.Comparison, one: str, other: str, block: str = "phi"
) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the variance of `one` over that of `other` at every point, and its standard error,
    pairing left out.
    """
    rows = [(comparison.estimator == name) & (comparison.block == block) for name in (one, other)]
    variance, error = (
        np.stack([column[row] for row in rows])
        for column in (comparison.variance, comparison.variance_error)
    )
    return np.log10(variance[0] / variance[1]), np.hypot(*(error / variance)) / math.log(10.0)


def columns(prefix: str, table: NamedTuple) -> dict[str, np.ndarray]:
    """A lab result as arrays "prefix/column"; parts that are tables themselves, or None, are left
    out.
    """
    parts = {
        name: column
        for name, column in table._asdict().items()
        if column is not None and not hasattr(column, "_fields")
    }
    return {f"{prefix}/{name}": np.asarray(column) for name, column in parts.items()}


class Expectation(NamedTuple):
    """E_q(z; lam_i)[f(z, x_i)] for i = 1..B: several points (lam_i, x_i) are measured in one go.

    Attributes:
      f: (z, x_i) -> []
      locate: phi_i -> lam_i
    """

    family: vj.Family
    f: Callable[[Any, Any], Array]
    locate: Callable[[PyTree], PyTree] = lambda phi: phi


def estimator(
    problem: Expectation, rule: vj.Rule, num_samples: int, num_points: int
) -> vj.Estimator:
    """The gradient of -sum_i E[f(z, x_i)] in phi, leaves [B, ...]. No log q is added to f, unlike
    in `vj.estimator`.

    Learned controls and running means are one per point, leaves [B, ...]. phi is to be filled in.

    Raises:
      ValueError: if the rule is illegal for this family.
    """
    rule.check(problem.family, elbo, num_samples, None)

    def init_params(key: Key) -> vj.Params:
        return vj.Params((), (), jax.vmap(rule.init)(jax.random.split(key, num_points)))

    def init(key: Key, params: vj.Params) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_points, *jnp.shape(leaf))), rule.init_state()
        )

    def estimate(
        key: Key, params: vj.Params, state: PyTree, batch: vj.Batch
    ) -> tuple[vj.Estimate, PyTree]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.index)

        def point(
            key: Key, phi: PyTree, x: PyTree, control: PyTree, state: PyTree
        ) -> tuple[Array, Any]:
            return rule.surrogate(
                key,
                problem.family,
                problem.locate(phi),
                lambda s: checkpoint_name(problem.f(s.z, x), EVALUATION),
                objective=elbo,
                num_samples=num_samples,
                control=control,
                state=state,
                x=x,
            )

        def loss(params: vj.Params) -> tuple[Array, PyTree]:
            values, aux = jax.vmap(point)(keys, params.phi, batch.x, params.control, state)
            return -jnp.sum(values), aux.stats

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return vj.Estimate(value, grads, ()), jax.vmap(rule.update, axis_size=num_points)(
            state, stats
        )

    def no_tables(params: vj.Params) -> vj.Params:
        return jax.tree.map(lambda leaf: False, params)

    return vj.Estimator(init_params, init, estimate, estimate, no_tables, num_points)


def measured(
    key: Key,
    made: vj.Estimator,
    phi: PyTree,
    x: PyTree,
    *,
    num_draws: int,
    exact: PyTree = None,
    learned: lab.Learned | None = None,
) -> lab.GradientReport:
    """The report at phi, leaves [B, ...], and x, leaves [B, ...].

    Args:
      exact: dE[f]/dphi, to look for bias.
      learned: what the rule learns or remembers; None: as initialised.
    """
    batch = vj.Batch(x, jnp.arange(made.num_data))
    own = (
        lab.learn(key, made, vj.Params((), phi, ()), batch, num_steps=0)
        if learned is None
        else learned
    )
    loss_gradient = (
        None
        if exact is None
        else lab.Reference(vj.Params((), jax.tree.map(lambda g: -g, exact), ()))
    )
    return lab.gradient_report(
        key,
        made,
        vj.Params((), phi, own.control),
        own.state,
        batch,
        num_draws=num_draws,
        reference=loss_gradient,
    )
