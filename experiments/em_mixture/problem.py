"""Ten data, three components: the two models, where every method starts, and all 59,049
assignments.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from vijax import families, guides, models
from vijax.models.bayesian_gaussian_mixture import assignment_log_joint, assignments
from vijax.testing.averages import compiled, quickly
from vijax.types import Array, PyTree, Scalar

if TYPE_CHECKING:
    from experiments.em_mixture.__main__ import Config

CENTRES = np.array([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.5]])


class Problem(NamedTuple):
    """Everything that the methods share.

    Attributes:
      x: [N, 2].
      mixture: theta = weights and means at their maximum; the scales stay.
      bayes: weights and means with their priors, integrated out.
      rows: a table of q(z_i).
      guide: that and q(w).
      theta: where EM starts.
      phi: where all else starts.
      every: [C^N, N, C] assignments.
      log_joint: [C^N] log p(x, z) of each under `bayes`, weights and means integrated out; nats.
      evidence: of `bayes`, their sum.
    """

    x: Array
    mixture: vj.Model
    bayes: vj.Model
    rows: vj.Guide
    guide: vj.Guide
    theta: PyTree
    phi: PyTree
    every: Array
    log_joint: Array
    evidence: float


def build(config: "Config") -> Problem:
    """The data, and methods' start around the first data; in the float type of the moment."""
    num, components = config.num_data, config.num_components
    rng = np.random.default_rng(config.seed)
    angles = 2.0 * math.pi * np.arange(components) / components
    centres = CENTRES if components == 3 else 2.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    noise = config.noise_scale * rng.normal(size=(num, 2))
    points = centres[np.arange(num) % components] + noise
    x = jnp.asarray(points)
    bayes = models.bayesian_gaussian_mixture(
        components,
        2,
        concentration=config.concentration,
        prior_scale=config.prior_scale,
        noise_scale=config.noise_scale,
    )
    classes = families.categorical(components)
    of_w = families.product(
        weights=families.dirichlet(components), loc=families.diag_normal((components, 2))
    )
    rows = guides.per_datapoint(classes, num)
    guide = guides.hierarchical(w=guides.shared(of_w), z=rows)
    # One datum of each component, pulled to the middle: a poor start, with room to climb
    loc = jnp.asarray(0.3 * points[:components])
    phi = compiled(guide.init, jax.random.key(config.seed))
    phi["w"] = {
        "weights": {"log_concentration": jnp.log(jnp.full(components, 1.0 + num / components))},
        "loc": {"loc": loc, "log_scale": jnp.full(loc.shape, math.log(0.5 * config.noise_scale))},
    }
    scale = jnp.full(loc.shape, math.log(config.noise_scale))
    every = assignments(components, num)

    def log_joint(z: Array, x: Array) -> Scalar:
        return assignment_log_joint(
            z,
            x,
            concentration=config.concentration,
            prior_scale=config.prior_scale,
            noise_scale=config.noise_scale,
        )

    each = compiled(jax.vmap(log_joint, in_axes=(0, None)), every, x)
    return Problem(
        x=x,
        mixture=with_free(
            models.gaussian_mixture(components, 2),
            lambda theta, best: best | {"log_scale": theta["log_scale"]},
        ),
        bayes=bayes,
        rows=rows,
        guide=guide,
        theta={"logits": jnp.zeros(components), "loc": loc, "log_scale": scale},
        phi=jax.tree.map(jnp.asarray, phi),
        every=every,
        log_joint=jnp.asarray(each),
        evidence=float(jax.nn.logsumexp(each)),
    )


def with_free(model: vj.Model, free: Callable[[PyTree, PyTree], PyTree]) -> vj.Model:
    """The model, of whose M-step only a part is taken: `free(theta, best theta)`, for parts whose
    maximum does not depend on the rest of theta.
    """
    known = model.traits.get(models.SufficientStatistics)
    assert known is not None
    part = known._replace(maximize=lambda theta, mean: free(theta, known.maximize(theta, mean)))
    return model._replace(traits=families.traits_of(part))


def at_theta(problem: Problem) -> Callable[[PyTree], Array]:
    """Theta -> [C^N] log p(x, z | theta) of every assignment."""

    def joint(theta: PyTree, z: Array) -> Scalar:
        terms = jax.vmap(lambda z, x: problem.mixture.log_local(theta, None, z, x))(z, problem.x)
        return jnp.sum(jnp.asarray(terms))

    # An argument: XLA would fold a constant at length
    each = quickly(jax.vmap(joint, in_axes=(None, 0)), problem.theta, problem.every)
    return lambda theta: each(theta, problem.every)


def together(every: Array, log_joint: Array) -> np.ndarray:
    """[N, N] the probability that two data share a component, which no relabelling changes."""
    z, share = np.asarray(every), np.asarray(jax.nn.softmax(log_joint))
    return np.einsum("sic,sjc->ij", share[:, None, None] * z, z, optimize=True)


def kl_to_posterior(problem: Problem) -> Callable[[PyTree], Scalar]:
    """Phi -> KL(q(w) q(z) || p(w, z | x)) in nats, from the exact posterior of w given every
    assignment: another road to the gap than evidence less bound.
    """
    kl = families.need(problem.guide.families["w"], families.Kl).value
    classes, num_data = problem.guide.families["z"], problem.x.shape[0]
    conditionals = problem.bayes.traits.get(models.Conditionals)
    assert conditionals is not None

    def given(lam: PyTree, z: Array) -> Scalar:
        """KL(q(w) || p(w | z, x))."""

        def statistics(z: Array, x: Array) -> PyTree:
            sure = {"logits": jnp.where(z > 0.5, 0.0, -jnp.inf)}
            return conditionals.statistics(vj.Q(classes, sure), x)

        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(statistics)(z, problem.x))
        return kl(lam, conditionals.update((), lam, mean, num_data))

    def divergence(phi: PyTree, every: Array, log_joint: Array) -> Scalar:
        log_q = jnp.einsum("snc,nc->s", every, jax.nn.log_softmax(phi["z"]["logits"], axis=1))
        gaps = jax.vmap(lambda z: given(phi["w"], z))(every) + log_q - log_joint
        return jnp.sum(jnp.exp(log_q) * gaps) + problem.evidence

    given_all = (problem.every, problem.log_joint)
    program = quickly(divergence, problem.phi, *given_all)
    return lambda phi: program(phi, *given_all)
