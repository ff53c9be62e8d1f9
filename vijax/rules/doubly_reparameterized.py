"""Differentiate through the sampler only, with the score term rewritten as a path term."""

from collections.abc import Callable

import jax

from vijax.families import Density, Reparameterized, log_probs
from vijax.noise import IID, Noise
from vijax.path_weights import PathWeights, exact
from vijax.rules.base import draw, evaluate, live_weights, no_aux, rule, stopped
from vijax.types import (
    Array,
    Aux,
    Integrand,
    Key,
    Objective,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)


def doubly_reparameterized(weights: PathWeights | None = None, *, noise: Noise = IID) -> Rule:
    """Path-derivative gradient for any objective: sum_k c_k (dlog_w_k/dz_k) (dz_k/dlam), q's
    parameters stopped inside log q; by default c_k = R_k - R_kk, with R_k = dR/dlog_w_k and R_kk
    the Hessian's diagonal. Everything else upstream (theta) keeps R_k.

    For the ELBO this is sticking-the-landing (Roeder et al. 2017), for IWAE it is DReG (Tucker et
    al. 2019, eq. 8: weights w_k^2). Its phi-gradient is exactly zero, sample by sample, where q is
    the posterior.

    Args:
      weights: another c_k, from `path_weights`: `sticking` (IWAE-STL), `wake` (RWS-DReG),
        `interpolated` (DReG(alpha)), `tail_adaptive`; they are biased in phi, each says towards
        what.
      noise: how the K samples are drawn together, see `vijax.noise`; for the ELBO alone if they
        depend on each other.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta; in phi too, with
                  `path_weights.exact()`.
    Requires:     a differentiable sampler for every block; an integrand f(z) + s log_q with any
                  constant s, -1 for a bound (`vijax.path_weights` proves it); an objective whose
                  derivative does not jump.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass, K^2 scalars.
    """
    chosen = exact() if weights is None else weights

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        drawn = draw(key, q, setting.num_samples, noise)

        def at(z: PyTree) -> Sample:
            return drawn._replace(z=z, log_q=log_probs(q.family, stopped(q).lam, z))

        return path_derivative(setting.objective, chosen, integrand, at, drawn.z)

    settings = ([] if weights is None else [weights.name]) + (
        [] if noise is IID else [f"noise={noise.name}"]
    )
    advice = (
        "Write score() or, for few states, enumerated() for that block, as in "
        'rules={"c": score(), "z": pathwise()}.'
    )
    return rule(
        f"doubly_reparameterized({', '.join(settings)})",
        Requirements(
            needs=(Reparameterized, Density),
            linear=chosen.linear,
            min_samples=chosen.min_samples,
            in_z=True,
            smooth=chosen.smooth,
            unbiased=chosen.unbiased and noise.unbiased,
            paper=chosen.paper,
            advice=chosen.advice or advice,
        ),
        surrogate,
        noise=noise,
    )


def path_derivative(
    objective: Objective,
    weights: PathWeights,
    integrand: Integrand,
    at: Callable[[PyTree], Sample],
    z: PyTree,
) -> tuple[Scalar, Aux]:
    """The objective of the integrand at z, leaves [K, ...], the derivative through sample k's z
    multiplied by its factor; `at(z)` are the samples there.
    """
    # The factor needs the weights, whose backward pass needs the factor. Evaluated twice as
    # written; the two forward passes are the same operations on the same operands, so the compiler
    # keeps one.
    log_w, slope, _ = live_weights(integrand, at(z))
    factor = weights.factor(objective, jax.lax.stop_gradient(log_w), slope)
    scaled = jax.vmap(lambda c, z: jax.tree.map(lambda leaf: scale_tangent(leaf, c), z))(factor, z)
    log_w, aux = evaluate(integrand, at(scaled))
    return objective.value(log_w), no_aux(aux)


@jax.custom_jvp
def scale_tangent(x: Array, factor: Array) -> Array:
    """The identity in x, its derivative multiplied by `factor`."""
    return x


@scale_tangent.defjvp
def _scale_tangent_jvp(primals, tangents):
    x, factor = primals
    return x, factor.astype(x.dtype) * tangents[0]
