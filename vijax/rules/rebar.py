"""Control variates from a continuous relaxation of a discrete z: REBAR, and RELAX with a learned
critic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from vijax.networks import Network, as_network
from vijax.rules.base import draw, evaluate, evaluate_at, mean_aux, rule
from vijax.rules.discrete import learned_gradient, site_logits, site_mean, spare_key
from vijax.types import Array, Aux, Family, Key, PyTree, Requirements, Rule

Relaxation = Callable[[Array, Array, Array], Array]
"""(scores, logits, temperature) -> soft logits: the relaxed z is their sigmoid or softmax."""


def concrete(scores: Array, logits: Array, temperature: Array) -> Array:
    """Scores divided by the temperature. Maddison et al. 2017; Jang et al. 2017."""
    return scores / temperature


def to_mean_field(scores: Array, logits: Array, temperature: Array) -> Array:
    """`concrete` with the logits' part tending to 1, not 0, in the limit of high temperature: REBAR
    then tends to MuProp.

    Tucker et al. 2017, section 3.3: logits (t^2 + t + 1) / (t + 1) + noise, all over t.
    """
    return scores / temperature + logits * temperature / (temperature + 1.0)


def rebar(
    *, temperature: float = 0.5, relaxation: Relaxation = concrete, tied: bool = True
) -> Rule:
    """Score function of f(z) - s c(z~) plus the pathwise gradient of s [c(z^) - c(z~)], with c = f
    at a relaxed z.

    Tucker et al. 2017, eq. 8-9; categorical sites as in its appendix. z^ are the relaxed scores
    whose hard value is z, z~ scores drawn given z. Scale s and temperature are learned, by the
    variance's gradient.

    Args:
      temperature: the initial one.
      relaxation: `concrete` or `to_mean_field`, or your own.
      tied: z~ takes z^'s own noise, as in the authors' code: equal in value, different in
        derivative, one evaluation for both. False draws it anew.

    Unbiased for: the gradient of the ELBO, in theta and phi, whatever the control's values.
    Requires:     independent Bernoulli or one-hot categorical sites with logits; an integrand that
                  is differentiable at relaxed z, twice to learn the temperature; a linear
                  objective.
    State:        none; {"scale", "log_temperature"} are in `control`.
    Cost:         2K evaluations of the integrand per datum and K derivatives in z; 3K and 2K if not
                  tied.
    """
    name = f"rebar({'' if tied else 'tied=False'})"
    return _relaxed(
        name,
        "Tucker et al. 2017",
        Control(relaxation, critic=None, use_integrand=True),
        temperature,
        tied=tied,
    )


def relax(
    critic: Any = None,
    *,
    z: PyTree = None,
    x: PyTree = None,
    temperature: float = 0.5,
    relaxation: Relaxation = concrete,
    tied: bool = False,
    use_integrand: bool = True,
) -> Rule:
    """`rebar` with a learned critic of the relaxed z added to the control: c = s f(soft z) + r(soft
    z, x).

    Grathwohl et al. 2018, eq. 8.

    Args:
      critic: relaxed z, or a dict {"z": relaxed z, "x": datum} if `x` is given -> one number; a
        flax module or an (init, apply) pair, see `networks.as_network`. Default: two hidden layers,
        zero at first.
      z: one latent (or `families.z_like(family)`), for modules that are initialised by a call, as
        the default is.
      x: one datum, for critics that look at it.
      use_integrand: False leaves the integrand out of c: it is then a black box, never
        differentiated.

    Unbiased for: the gradient of the ELBO, in theta and phi, whatever the control's values.
    Requires:     independent Bernoulli or one-hot categorical sites with logits; an integrand
                  differentiable at relaxed z, unless left out; a linear objective.
    State:        none; {"scale", "log_temperature", "critic"} are in `control`.
    Cost:         as `rebar`, and the critic's second derivatives; K evaluations if the integrand is
                  left out.
    """
    if z is None and (critic is None or isinstance(critic, linen.Module)):
        raise ValueError(
            "relax: a flax.linen critic needs one latent for its shapes. Pass "
            "z=families.z_like(family)."
        )
    network = as_network(
        Critic() if critic is None else critic, z if x is None else {"z": z, "x": x}
    )
    net = Network(
        network.init, lambda p, inputs: network.apply(p, inputs if x is not None else inputs["z"])
    )
    name = f"relax({'' if use_integrand else 'use_integrand=False'})"
    return _relaxed(
        name,
        "Grathwohl et al. 2018",
        Control(relaxation, critic=net, use_integrand=use_integrand),
        temperature,
        tied=tied,
    )


class Critic(linen.Module):
    """Two hidden layers of leaky rectifiers on everything it is given, flattened; its output is
    zero at first.
    """

    width: int = 64

    @linen.compact
    def __call__(self, inputs: PyTree) -> Array:
        """One number for a pytree of arrays in [0, 1], such as a relaxed z."""
        hidden = 2.0 * jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(inputs)]) - 1.0
        for _ in range(2):
            hidden = linen.leaky_relu(linen.Dense(self.width)(hidden))
        return linen.Dense(1, kernel_init=linen.initializers.zeros)(hidden)[0]


class Scores(NamedTuple):
    """A discrete draw as a function of continuous scores.

    Attributes:
      noise: (key, shape, dtype) -> noise of the scores given z
      given: (logits, hard z, noise) -> scores with that hard z, live in logits
      squash: soft logits -> relaxed z
      normal: logits -> the part of the scores that is not noise
    """

    noise: Callable[..., Array]
    given: Callable[[Array, Array, Array], Array]
    squash: Callable[[Array], Array]
    normal: Callable[[Array], Array]


def logistic_scores(logits: Array, z: Array, noise: Array) -> Array:
    """Scores logits + logistic noise, given that 1[. > 0] is z: log(1 + v / ((1 - v) (1 - p))) for
    z = 1 and uniform v.
    """
    sign = 2.0 * z - 1.0
    return sign * jax.nn.softplus(noise + jax.nn.softplus(sign * logits))


def gumbel_scores(logits: Array, z: Array, noise: Array) -> Array:
    """log-probabilities + Gumbel noise, given that the largest is z's: -log E_b there, -log(E_i /
    pi_i + E_b) elsewhere.

    noise: minus the logs of standard exponentials E. Tucker et al. 2017, appendix C; Maddison et
    al. 2014.
    """
    top = jnp.sum(z * noise, axis=-1, keepdims=True)
    others = -jnp.logaddexp(-noise - jax.nn.log_softmax(logits), -top)
    return jnp.where(z > 0.5, top, others)


def scores_of(family: Family) -> Scores:
    """Logistic scores for Bernoulli sites, Gumbel scores for categorical ones."""
    if family.bernoulli_logits is not None:
        return Scores(jax.random.logistic, logistic_scores, jax.nn.sigmoid, lambda logits: logits)
    return Scores(jax.random.gumbel, gumbel_scores, jax.nn.softmax, jax.nn.log_softmax)


class Control(NamedTuple):
    """The control variate c(scores, logits): what `rebar` and `relax` differ in."""

    relaxation: Relaxation
    critic: Network | None
    use_integrand: bool

    def values(
        self,
        control: PyTree,
        integrand: Callable[[Array], Array],
        squash,
        scores: Array,
        logits: Array,
        x: PyTree,
    ):
        """The control variate at M scores: [M]. `integrand` takes M relaxed z."""
        soft = squash(self.relaxation(scores, logits[None], jnp.exp(control["log_temperature"])))
        total = jnp.zeros(scores.shape[0], logits.dtype)
        if self.use_integrand:
            total = total + control["scale"] * integrand(soft)
        if self.critic is not None:
            apply = self.critic.apply
            total = total + jax.vmap(
                lambda z: jnp.reshape(apply(control["critic"], {"z": z, "x": x}), ())
            )(soft)
        return total


def score_part(values: Array, controls: Array, away: Array) -> Array:
    """The mean of (f - c) (z - E z): c is live in the control's parameters, or its variance's
    gradient would be wrong.
    """
    return jnp.tensordot(values - controls, away, axes=1) / values.shape[0]


def _relaxed(name: str, paper: str, variate: Control, temperature: float, *, tied: bool) -> Rule:
    if not temperature > 0.0:
        raise ValueError(f"{name}(temperature={temperature!r}): the temperature must be positive.")

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        drawn = draw(key, family, jax.lax.stop_gradient(lam), num_samples)
        values, aux = evaluate(integrand, drawn)
        live = site_logits(family, lam)
        logits, scores = jax.lax.stop_gradient(live), scores_of(family)
        free_key, given_key, value_key = jax.random.split(spare_key(key), 3)
        noise = scores.noise(free_key, drawn.z.shape, logits.dtype)
        noise_given = noise if tied else scores.noise(given_key, drawn.z.shape, logits.dtype)
        fixed = (
            scores.given(scores.normal(logits)[None], drawn.z, noise) - scores.normal(logits)[None]
        )

        def at(control: PyTree, points: Array, eta: Array) -> Array:
            def relaxed(soft: Array) -> Array:
                return evaluate_at(integrand, family, lam, soft, value_key)[0]

            return variate.values(control, relaxed, scores.squash, points, eta, x)

        def difference(eta: Array, control: PyTree) -> tuple[Array, Array]:
            eta = scores.normal(eta)
            free, given = eta[None] + fixed, scores.given(eta[None], drawn.z, noise_given)
            # Equal values: one evaluation, its derivative taken along the difference of the two
            # paths.
            if tied:
                apart = free - given
                c = at(
                    control,
                    jax.lax.stop_gradient(given - apart) + apart,
                    jax.lax.stop_gradient(eta),
                )
                return jnp.mean(c), c
            c = at(control, jnp.concatenate([free, given]), eta)
            return jnp.mean(c[:num_samples] - c[num_samples:]), c[num_samples:]

        def gradient(control: PyTree) -> Array:
            path, c = jax.grad(difference, has_aux=True)(logits, control)
            return score_part(values, c, drawn.z - site_mean(family, logits)[None]) + path

        return learned_gradient(objective(values), live, control, gradient), Aux((), mean_aux(aux))

    def init(key: Key) -> PyTree:
        control = {"log_temperature": jnp.log(jnp.asarray(temperature, jnp.result_type(float)))}
        if variate.use_integrand:
            control |= {"scale": jnp.ones(())}
        return control if variate.critic is None else control | {"critic": variate.critic.init(key)}

    relaxed_evaluations = (1 if tied else 2) if variate.use_integrand else 0
    requires = Requirements(
        paper=paper,
        bernoulli=True,
        categorical=True,
        linear_objective=True,
        differentiates_z=variate.use_integrand,
        evaluations=f"{1 + relaxed_evaluations}K" if relaxed_evaluations else "K",
        advice="Write score() or local_expectation() instead.",
    )
    return rule(name, requires, surrogate, init=init)
