"""The methods that `experiments.em_mixture` compares, each from the same start."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from experiments.em_mixture.problem import Problem, at_theta
from vijax import baselines, families, models, rules
from vijax.algorithms import cavi, em, natural_ascent
from vijax.testing.averages import compiled, quickly
from vijax.types import Array, Integrand, Key, Params, PyTree, Sample, Scalar

if TYPE_CHECKING:
    from experiments.em_mixture.__main__ import Config

RULES: Mapping[str, vj.Rule] = {
    "enumerated": rules.enumerated(),
    "score": rules.score(),
    "score_without_baseline": rules.score(baselines.none()),
    "disarm_tree": rules.disarm_tree(),
    "disarm_stick_breaking": rules.disarm_stick_breaking(),
    "arsm": rules.arsm(),
}
"""For q(z) of gradient VI; those with draws of z get two of them."""
METHODS = (
    "EM",
    "incremental EM",
    "online EM",
    "gradient EM",
    "partial E-steps",
    "hard E-steps",
    "CAVI",
    "incremental CAVI",
    "SVI",
)
"""The others, EM and CAVI among them at least."""


Divergence = Callable[[PyTree], Scalar]
"""phi -> KL(q || posterior), see `problem.kl_to_posterior`."""


class Row(NamedTuple):
    """A line of the table, nats.

    Attributes:
      about: "theta" at its maximum, or "w" integrated out.
      evidence: by summing every assignment.
      least: is the expected gap the least that it can be, rather than the gap itself?
      bound_error: standard error, 0 where the bound is exact.
      expected: the gap by another road.
      why: that road.
      passes: [T] over the data.
      curve: [T] the bound on all data after so many.
    """

    method: str
    about: str
    evidence: float
    bound: float
    expected: float
    why: str
    least: bool = False
    bound_error: float = 0.0
    passes: np.ndarray = np.zeros(0)
    curve: np.ndarray = np.zeros(0)

    @property
    def gap(self) -> float:
        """Evidence less bound."""
        return self.evidence - self.bound


def follow(
    key: Key,
    algorithm: vj.Algorithm,
    params: Params,
    x: Array,
    watch: Callable[[Params], Scalar],
    *,
    passes: int,
    batch_size: int,
) -> tuple[Params, np.ndarray, np.ndarray]:
    """(params after so many passes over the data, passes [T], what `watch` says after each step
    [T], of the start first). What `vijax.fit` does, with a look after every step, in one program.
    """
    per_pass = algorithm.num_data // batch_size

    def turn(state: PyTree, now: tuple[Array, Array]) -> tuple[PyTree, Scalar]:
        number, index = now
        batch = vj.Batch(x[index], index)
        state, _ = algorithm.step(jax.random.fold_in(key, number), state, batch)
        return state, watch(algorithm.params(state))

    def whole(params: Params) -> tuple[Params, Array]:
        shuffle = jax.vmap(jax.random.permutation, in_axes=(0, None))
        orders = shuffle(jax.random.split(key, passes), jnp.arange(algorithm.num_data))
        turns = orders.reshape(passes * per_pass, batch_size)
        numbers = jnp.arange(len(turns))
        state, seen = jax.lax.scan(turn, algorithm.init(key, params), (numbers, turns))
        return algorithm.params(state), jnp.append(watch(params), seen)

    fitted, seen = compiled(whole, params)  # once, and small: compiling is most of its time
    return jax.tree.map(jnp.asarray, fitted), np.arange(len(seen)) / per_pass, seen


def hard(key: Key, lam: PyTree, integrand: Integrand) -> PyTree:
    """An E-step among point masses: all on the likeliest class."""
    values = jnp.eye(lam["logits"].size)
    log_p = jax.vmap(lambda z: integrand(Sample(z, jnp.zeros(()), key)))(values)
    return {"logits": jnp.where(log_p == jnp.max(log_p), 0.0, -1e3)}


def point_estimates(config: "Config", problem: Problem) -> tuple[list[Row], dict[str, PyTree]]:
    """EM and its kin on the mixture whose theta is at a maximum, and their theta."""
    model, guide, num_data = problem.mixture, problem.rows, config.num_data
    partial = natural_ascent(guide.families["z"], rate=0.3)
    hold = {"logits": "move", "loc": "move", "log_scale": "hold"}
    climb = optax.partition({"move": optax.adam(0.2), "hold": optax.set_to_zero()}, hold)
    make = functools.partial(em, model, guide, num_data=num_data)
    variants = {
        "EM": (make(), num_data, 1),
        "incremental EM": (make(), config.batch_size, 1),
        "online EM": (make(rate=lambda t: (t + 2.0) ** -0.6), config.batch_size, 1),
        "gradient EM": (make(optimizer=climb), num_data, 1),
        "partial E-steps": (make(e_step=partial), num_data, 5),
        "hard E-steps": (make(e_step=hard), num_data, 1),
    }
    variants = {name: variants[name] for name in variants if name in config.methods}
    terms = at_theta(problem)
    est = vj.estimator(model, guide, rules=rules.enumerated(), num_data=num_data)
    batch = vj.Batch(problem.x, jnp.arange(num_data))

    def between(theta: PyTree, phi: PyTree) -> Scalar:
        whole = Params(theta, phi, {"z": ()})
        return -est.estimate(jax.random.key(0), whole, {"z": ()}, batch)[0].loss

    def likelihood(params: Params) -> Scalar:
        known = model.log_evidence
        assert known is not None
        return jnp.sum(jax.vmap(lambda x: known(params.theta, x))(problem.x))

    def e_step(theta: PyTree) -> PyTree:
        known = model.posterior
        assert known is not None
        return {"z": jax.vmap(lambda x: known(theta, x))(problem.x)}

    start = Params(problem.theta, {"z": problem.phi["z"]}, ())
    bound_at = quickly(between, problem.theta, start.phi)
    rows, thetas, keys = [], {}, jax.random.split(jax.random.key(config.seed), len(variants))
    for key, (name, (algorithm, size, more)) in zip(keys, variants.items(), strict=True):
        settings = {"passes": more * config.passes, "batch_size": size}
        params, passes, curve = follow(key, algorithm, start, problem.x, likelihood, **settings)
        theta = thetas[name] = params.theta
        bound = bound_at(theta, params.phi if "E-steps" in name else e_step(theta))
        every = terms(theta)
        evidence = float(jax.nn.logsumexp(every))
        expected, why = 0.0, "q is the posterior"
        if "hard" in name:
            expected, why = evidence - float(jnp.max(every)), "the largest of all terms"
        rows.append(
            Row(name, "theta", evidence, float(bound), expected, why, passes=passes, curve=curve)
        )
    return rows, thetas


def exact_bound(problem: Problem) -> Callable[[Params], Scalar]:
    """Params -> the ELBO on all data, in closed form."""
    conditionals = problem.bayes.traits.get(models.Conditionals)
    assert conditionals is not None
    kl = families.need(problem.guide.families["w"], families.Kl).value
    before, classes = problem.bayes.priors["w"].locate(()), problem.guide.families["z"]

    def bound(params: Params) -> Scalar:
        lam, rows = params.phi["w"], params.phi["z"]
        each = jax.vmap(lambda own, x: conditionals.bound((), lam, vj.Q(classes, own), x))
        return jnp.sum(each(rows, problem.x)) - kl(lam, before)

    return bound


def conjugate(
    config: "Config", problem: Problem, divergence: Divergence
) -> tuple[list[Row], dict[str, Params]]:
    """CAVI, incremental CAVI, stochastic VI."""
    make = functools.partial(cavi, problem.bayes, problem.guide, num_data=config.num_data)
    variants = {
        "CAVI": (make(), config.num_data, 2 * config.passes),
        "incremental CAVI": (make(), config.batch_size, 2 * config.passes),
        "SVI": (make(rate=lambda t: (t + 2.0) ** -0.6), config.batch_size, 4 * config.passes),
    }
    variants = {name: variants[name] for name in variants if name in config.methods}
    return _integrated(config, problem, variants, divergence, control=())


def by_gradients(config: "Config", problem: Problem, divergence: Divergence) -> list[Row]:
    """Gradient VI: q(w) through its sampler, q(z) by each rule."""
    variants = {}
    for name in config.rules:
        est = vj.estimator(
            problem.bayes,
            problem.guide,
            rules={"w": rules.pathwise(), "z": RULES[name]},
            num_samples={"w": config.num_samples, "z": 1 if name == "enumerated" else 2},
            num_data=config.num_data,
        )
        rate = optax.exponential_decay(0.1, config.gradient_steps, 1e-3)
        algorithm = vj.descent(est, optax.adam(rate))
        variants[f"gradient VI, {name}"] = (algorithm, config.num_data, config.gradient_steps)
    return _integrated(config, problem, variants, divergence, control={"w": (), "z": ()})[0]


def _integrated(
    config: "Config",
    problem: Problem,
    variants: Mapping[str, Any],
    divergence: Divergence,
    *,
    control: PyTree,
) -> tuple[list[Row], dict[str, Params]]:
    """Rows and fitted params of {method: (algorithm, batch size, passes)}."""
    bound, start = exact_bound(problem), Params((), problem.phi, control)
    rows, fitted = [], {}
    for number, (name, (algorithm, size, passes)) in enumerate(variants.items()):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        settings = {"passes": passes, "batch_size": size}
        params, when, curve = follow(key, algorithm, start, problem.x, bound, **settings)
        expected = float(divergence(params.phi))
        row = Row(name, "w", problem.evidence, curve[-1], expected, "KL(q || posterior)")
        rows.append(row._replace(passes=when, curve=curve))
        fitted[name] = params
    return rows, fitted
