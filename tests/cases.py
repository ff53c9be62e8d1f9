"""The table of estimators: a problem, rules, an objective and a number of samples make one line in
`CASES`, which every property test of estimators goes through. `registry.py` has the other tables.

The faults below it are what each property test must catch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import problems

import vijax as vj
from vijax.baselines import Baseline, learned, leave_one_out, moving_average, none
from vijax.families import log_probs
from vijax.objectives import elbo, iwae, renyi
from vijax.rules import (
    closed_form_entropy,
    closed_form_kl,
    doubly_reparameterized,
    enumerated,
    pathwise,
    rule,
    score,
)


class Case(NamedTuple):
    """One estimator on one problem.

    Attributes:
      problem: () -> problems.Problem
      batch: rows; all of them where the bound has no minibatch form
      slow: only in the long sweep: its parts are in other lines too
    """

    problem: Any
    rules: Any
    objective: Any = elbo
    num_samples: Any = 1
    batch: tuple[int, ...] = problems.ROWS
    slow: bool = False

    @property
    def name(self) -> str:
        count = (
            self.num_samples
            if isinstance(self.num_samples, int)
            else "-".join(map(str, self.num_samples.values()))
        )
        return f"{self.problem.__name__}-{_label(self.rules)}-{_label(self.objective)}-{count}"

    @property
    def inner_samples(self) -> int:
        """K of the level that has the non-linear objective."""
        return (
            self.num_samples
            if isinstance(self.num_samples, int)
            else max(self.num_samples.values())
        )


def _label(thing) -> str:
    if isinstance(thing, dict):
        return "+".join(f"{name}:{_label(part)}" for name, part in thing.items())
    if isinstance(thing, vj.Rule):
        return thing.name.replace("()", "")
    return thing.name


HALF, TWO = renyi(0.5), renyi(2.0)
ALL = tuple(range(problems.N))

P, DREG, ENUM = pathwise(), doubly_reparameterized(), enumerated()
PLAIN, LOO, MEAN = score(none()), score(leave_one_out()), score(moving_average(0.9))
NVIL = score(
    learned(
        (
            lambda key: {"w": jax.random.normal(key, ()), "b": jnp.zeros(())},
            lambda c, x: c["w"] * x + c["b"],
        )
    )
)

CASES = [
    # One normal latent per datum.
    Case(problems.normal, P),
    Case(problems.normal, DREG, num_samples=2),
    Case(problems.normal, PLAIN, slow=True),
    Case(problems.normal, LOO, num_samples=3),
    Case(problems.normal, NVIL, num_samples=2),
    Case(problems.normal, closed_form_entropy(P)),
    Case(problems.normal, closed_form_entropy(LOO), num_samples=2, slow=True),
    Case(problems.normal, closed_form_kl(P), slow=True),
    Case(problems.normal, closed_form_kl(DREG)),
    Case(problems.normal, closed_form_kl(MEAN), slow=True),
    Case(problems.normal, P, iwae, 2, slow=True),
    Case(problems.normal, DREG, iwae, 2),
    Case(problems.normal, PLAIN, iwae, 2, slow=True),
    Case(problems.normal, LOO, iwae, 2, slow=True),
    Case(problems.normal, MEAN, iwae, 2),
    Case(problems.normal, NVIL, iwae, 2, slow=True),
    Case(problems.normal, P, HALF, 2, slow=True),
    Case(problems.normal, DREG, HALF, 2, slow=True),
    Case(problems.normal, LOO, HALF, 2, slow=True),
    Case(problems.normal, DREG, TWO, 2),
    Case(problems.full, P, slow=True),
    Case(problems.full, DREG, iwae, 2),
    Case(problems.full, closed_form_entropy(DREG), slow=True),
    # Discrete latents.
    Case(problems.binary, ENUM),
    Case(problems.binary, PLAIN, num_samples=2, slow=True),
    Case(problems.binary, LOO, num_samples=2),
    Case(problems.binary, MEAN, slow=True),
    Case(problems.binary, NVIL),
    Case(problems.binary, closed_form_kl(LOO), num_samples=2),
    Case(problems.binary, PLAIN, iwae, 2),
    Case(problems.binary, LOO, iwae, 3),
    Case(problems.binary, MEAN, iwae, 2, slow=True),
    Case(problems.binary, LOO, TWO, 2),
    Case(problems.classes, ENUM, slow=True),
    Case(problems.classes, LOO, num_samples=4),
    Case(problems.classes, LOO, iwae, 2, slow=True),
    # Structured latents, rules per block.
    Case(problems.two_layers, P, slow=True),
    Case(problems.two_layers, DREG, iwae, 2),
    Case(problems.two_layers, LOO, num_samples=2, slow=True),
    Case(problems.two_layers, {"first": LOO, "second": P}, num_samples=2),
    Case(problems.mixture, {"c": ENUM, "z": DREG}),
    Case(problems.mixture, {"z": P, "c": LOO}, num_samples={"z": 1, "c": 2}),
    Case(problems.mixture, {"c": LOO, "z": P}, iwae, 2),
    Case(problems.mixture, {"c": ENUM, "z": closed_form_entropy(LOO)}, num_samples=2, slow=True),
    Case(problems.mixture, LOO, HALF, 2, slow=True),
    # A global latent, alone and over local ones.
    Case(problems.regression, P, num_samples=2),
    Case(problems.regression, closed_form_kl(P), slow=True),
    Case(problems.regression, LOO, num_samples=3, slow=True),
    Case(problems.regression, DREG, iwae, 2, batch=ALL),
    Case(problems.global_normal, {"w": P, "z": ENUM}),
    Case(problems.global_normal, {"w": DREG, "z": LOO}, num_samples={"w": 1, "z": 2}),
    Case(problems.global_normal, {"w": LOO, "z": MEAN}, num_samples=2, slow=True),
    Case(problems.global_normal, {"w": P, "z": LOO}, {"w": elbo, "z": iwae}, {"w": 1, "z": 2}),
    Case(problems.global_bits, {"w": ENUM, "z": P}, slow=True),
    Case(problems.global_bits, {"w": LOO, "z": P}, iwae, 2, batch=ALL),
    Case(problems.global_bits, {"w": LOO, "z": DREG}, {"w": elbo, "z": iwae}, {"w": 2, "z": 2}),
]


class Built(NamedTuple):
    """A case's estimator and where to look at it.

    Attributes:
      params: away from every special point
      state: with non-zero running means
    """

    estimator: vj.Estimator
    params: vj.Params
    state: Any


@functools.cache
def cached_problem(make) -> problems.Problem:
    return make()


def build(case: Case, *, rules=None, num_data: int = problems.N) -> Built:
    """The case's estimator with generic params, in the float type in force."""
    problem = cached_problem(case.problem)
    guide = problem.guide._replace(num_data=num_data) if problem.guide.num_data else problem.guide
    estimator = vj.estimator(
        problem.model,
        guide,
        objective=case.objective,
        rules=case.rules if rules is None else rules,
        num_samples=case.num_samples,
        num_data=num_data,
    )
    params = problems.generic(jax.eval_shape(estimator.init_params, jax.random.key(0)))
    state = jax.tree.map(lambda leaf: leaf + 0.7, estimator.init(jax.random.key(3), params))
    return Built(estimator, params, state)


def dropped_score() -> vj.Rule:
    """The score rule without its signal: only the direct dependence on q's parameters is left."""
    return score(
        Baseline("dropped", lambda objective, log_w, control, state, x: jnp.zeros_like(log_w))
    )


def batch_mean() -> vj.Rule:
    """A sample's own value is part of its baseline: the mean gradient is (K - 1) / K of the right
    one.
    """
    return score(
        Baseline(
            "batch_mean",
            lambda objective, log_w, control, state, x: (log_w - log_w.mean()) / log_w.shape[0],
        )
    )


def swapped_sign() -> vj.Rule:
    """The signal with the wrong sign."""
    right = leave_one_out()
    return score(right._replace(signal=lambda *given: -right.signal(*given)))


def dropped_direct() -> vj.Rule:
    """The commonest bug of multi-sample score estimators: log_w is stopped, so -sum_k R_k dlog q_k
    is missing.
    """
    right = score(leave_one_out())

    def surrogate(key, q, integrand, setting):
        stopped = lambda s: integrand(s._replace(log_q=jax.lax.stop_gradient(s.log_q)))  # noqa: E731
        return right.surrogate(key, q, stopped, setting)

    return rule("dropped_direct", right.requires, surrogate)


def path_for_iwae() -> vj.Rule:
    """Sticking-the-landing's phi-gradient used for IWAE: biased beyond one sample (Tucker et al.
    2019).
    """

    def surrogate(key, q, integrand, setting):
        drawn = vj.rules.draw(key, q, setting.num_samples)
        log_q = log_probs(q.family, jax.lax.stop_gradient(q.lam), drawn.z)
        log_w, _ = vj.rules.evaluate(integrand, drawn._replace(log_q=log_q))
        return setting.objective.value(log_w), vj.Aux((), ())

    return rule("path_for_iwae", DREG.requires, surrogate)


FAULTS = {
    "dropped score term": (Case(problems.binary, LOO, num_samples=2), dropped_score()),
    "factor (K - 1) / K": (Case(problems.binary, LOO, num_samples=2), batch_mean()),
    "swapped sign": (Case(problems.binary, LOO, num_samples=2), swapped_sign()),
    "dropped direct term": (Case(problems.binary, LOO, iwae, 2), dropped_direct()),
    "sticking-the-landing for IWAE": (Case(problems.normal, DREG, iwae, 2), path_for_iwae()),
}
