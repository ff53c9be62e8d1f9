"""A case of the table looked at: draws of its gradient, single calls, and the exact answer."""

import functools

import cases
import exact
import jax
import problems
from checks import compiled

import vijax as vj
from vijax.testing import gradient_draws

NUM_DRAWS = 20_000
# The first line of every problem
ONE_EACH = {case.problem: case for case in reversed(cases.CASES) if case.batch != cases.ALL}


def batch_of(case, rows=None):
    return problems.batch_of(
        cases.cached_problem(case.problem), case.batch if rows is None else rows
    )


@functools.cache
def exact_answer(make, objectives, num_samples):
    """The exact (loss, gradient) of a problem; shared by all rules that estimate it."""
    objective = objectives[0] if len(objectives) == 1 else dict(zip("wz", objectives, strict=True))
    loss = exact.exact_loss(cases.cached_problem(make), objective, num_samples)
    return jax.value_and_grad(loss)


def exact_of(case, params):
    given = case.objective
    objectives = (given["w"], given["z"]) if isinstance(given, dict) else (given,)
    samples = 1 if all(objective.linear for objective in objectives) else case.inner_samples
    answer = exact_answer(case.problem, objectives, samples)
    loss, grads = compiled(answer, params._replace(control=()), batch_of(case))
    return vj.Estimate(loss, grads, ())


def draws_of(case, built, num_draws=NUM_DRAWS):
    return gradient_draws(jax.random.key(5), *built, batch_of(case), num_draws=num_draws)
