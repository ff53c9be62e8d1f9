"""A problem that comes from a file, with estimators of its author's own."""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vijax as vj
from experiments.gradient_variance import exact
from experiments.gradient_variance.problems import PROBLEMS, Own, Problem, none_of_its_own

PARTS = ("model", "guide", "params", "batch", "exact gradient or None")
KINDS = ("Model", "Guide", "Params", "Batch")


def from_file(path: str) -> Problem:
    """The problem of a file that defines `problem() -> (model, guide, params, batch,
    exact_gradient_or_None)`.

    The exact gradient is `params -> gradient of the loss`, or its value at the given params alone.
    A function `estimators(model, guide, num_samples, objective) -> {name: Estimator}` in the file
    adds its author's own.

    Raises:
      ValueError: if there is no such file, or its functions take or return something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"--problem={path} is neither a file nor one of {', '.join(PROBLEMS)}.")
    spec = importlib.util.spec_from_file_location("problem_of_the_user", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--problem={path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "problem"):
        raise ValueError(f"{path} defines no problem() -> ({', '.join(PARTS)}).")
    made = module.problem()
    kinds = tuple(type(part).__name__ for part in made) if isinstance(made, tuple | list) else ()
    if kinds[:4] != KINDS or len(kinds) != len(PARTS):
        returned = f"({', '.join(kinds)})" if kinds else type(made).__name__
        raise ValueError(
            f"{path}: problem() returned {returned}, but must return ({', '.join(PARTS)}), of "
            f"which the first four are vijax.{', vijax.'.join(KINDS)}; the last is None if no "
            "exact gradient is known."
        )
    model, guide, params, batch, given = made
    known: Any = given if given is None or callable(given) else exact.only_at(params, given)
    return Problem(
        model=model,
        guide=guide,
        params=params,
        batch=batch,
        num_data=guide.num_data or len(batch.index),
        exact=known,
        estimators=("pathwise()", "doubly_reparameterized()", "score()", "score(none())"),
        trainer="",
        own=_own(path, getattr(module, "estimators", None), model, guide),
    )


def _own(path: str, make: Any, model: vj.Model, guide: vj.Guide) -> Own:
    """What a file's `estimators` makes at K and objective."""
    if make is None:
        return none_of_its_own
    try:
        inspect.signature(make).bind(model, guide, 1, vj.objectives.elbo)
    except TypeError as reason:
        raise ValueError(
            f"{path}: estimators must take (model, guide, num_samples, objective), but {reason}. "
            "Build yours with that K and objective: the tables say that they have them, and the "
            "sweep over K asks for others."
        ) from reason

    def own(num_samples: int, objective: vj.Objective) -> Mapping[str, vj.Estimator]:
        made = make(model, guide, num_samples, objective)
        if not isinstance(made, Mapping) or not all(
            isinstance(one, vj.Estimator) for one in made.values()
        ):
            raise ValueError(
                f"{path}: estimators(...) must return a dict of vijax.Estimator by name."
            )
        return made

    return own
