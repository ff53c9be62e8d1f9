"""What the program of a model's log-density shows of mistakes that its values would hide."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vijax.dependence import depends, trace
from vijax.estimators.nest import Level
from vijax.estimators.target import log_local, log_prior
from vijax.families import z_like
from vijax.inference import Model
from vijax.rules import check_steps
from vijax.types import Batch, PyTree, Scalar


def program_check(
    model: Model, levels: Mapping[str, Level], num_data: int
) -> Callable[[PyTree, Batch], None]:
    """(theta, batch) -> None: refuses a log-density that never looks at the datum, and one that has
    only steps where a rule differentiates it. The work is done once for arguments of one shape, at
    tracing.
    """
    seen = set()

    def check(theta: PyTree, batch: Batch) -> None:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)),
            (theta, jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[0], x), batch.x)),
        )
        shapes = (jax.tree.structure(like), *((s.shape, s.dtype) for s in jax.tree.leaves(like)))
        if shapes not in seen:
            _check(model, levels, num_data, *like)
            seen.add(shapes)

    return check


def _check(
    model: Model, levels: Mapping[str, Level], num_data: int, theta: PyTree, x: PyTree
) -> None:
    def local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> Scalar:
        return log_local(model, theta, w, z, x)[0]

    w, z = (z_like(levels[name].family) if name in levels else None for name in ("w", "z"))
    program = trace(local, theta, w, z, x)
    if num_data > 1 and not any(depends(program, (False, False, False, True))):
        raise ValueError(
            "the model's log-density of one datum never looks at the datum x, so the same number "
            f"would be counted num_data={num_data} times. Write it for one datum, x without a "
            "batch axis, in place of data that it closes over; a density of all data at once is "
            "one datum: num_data=1."
        )
    for name, level in levels.items():
        in_w, in_z = _only(name, level.rule.requires.in_z)
        if not any(jax.tree.leaves((in_w, in_z))):
            continue
        what = f"the log-density given {name!r}"
        check_steps(level.rule.name, what, program, (False, in_w, in_z, False))
        if name == "w":
            prior = trace(lambda theta, w: log_prior(model, theta, w)[0], theta, w)
            check_steps(level.rule.name, "log_prior", prior, (False, in_w))


def _only(name: str, in_z: Any) -> tuple[Any, Any]:
    """(in w, in z)."""
    return (in_z, False) if name == "w" else (False, in_z)
