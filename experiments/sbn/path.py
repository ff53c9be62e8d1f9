"""Where a run of `experiments.sbn` was at its checkpoints: kept with the run, so that one that goes
on knows its whole path.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax

import vijax as vj
from vijax.types import PyTree


class Checkpoint(NamedTuple):
    """Where a run was at one of its checkpoints; `state` is the estimator's."""

    params: vj.Params
    state: PyTree


@dataclasses.dataclass
class Watch:
    """The callback of the fit: remembers where it was at every checkpoint. It is kept with the run.

    Attributes:
      every: steps between checkpoints.
      path: the initial one first.
      at: steps taken at each.
      per_step: seconds, of the part before each but the first.
      mark: when, and at which step, the present part began in this process.
    """

    every: int
    path: list[Checkpoint]
    at: list[int] = dataclasses.field(default_factory=lambda: [0])
    per_step: list[float] = dataclasses.field(default_factory=list)
    mark: tuple[float, int] = (0.0, 0)

    def __call__(self, seen: vj.Progress) -> None:
        """Between two chunks."""
        if seen.step % self.every == 0:
            self.add(seen.result)

    def add(self, result: vj.FitResult) -> None:
        """Here is a checkpoint."""
        began, step = self.mark
        self.per_step.append((time.perf_counter() - began) / max(1, result.num_steps - step))
        self.path.append(Checkpoint(result.params, result.state.estimator))
        self.at.append(result.num_steps)

    def get_state(self) -> dict[str, Any]:
        """Everything, of checkpoints their leaves."""
        leaves = [jax.device_get(jax.tree.leaves(one)) for one in self.path]
        return {"path": leaves, "at": self.at, "per_step": self.per_step}

    def set_state(self, state: dict[str, Any]) -> None:
        """As it was then."""
        tree = jax.tree.structure(self.path[0])
        self.path = [jax.tree.unflatten(tree, jax.device_put(one)) for one in state["path"]]
        self.at, self.per_step = state["at"], state["per_step"]
