"""What a run is made of, seen from outside: its history, its result, what callbacks see, and the
error that a step which is not finite ends in.
"""

from typing import NamedTuple

import numpy as np

from vijax.inference import Algorithm
from vijax.optimize.loop import Carry
from vijax.optimize.tables import params_of
from vijax.types import Key, Params, PyTree


class History(NamedTuple):
    """What was recorded, at the steps that are multiples of `record_every`.

    Attributes:
      step: [T] int.
      loss: [T] minus the estimated bound on the whole data set, nats.
    """

    step: np.ndarray
    loss: np.ndarray


class FitResult(NamedTuple):
    """What `fit` returns, and what `fit(resume=...)` goes on from. Read `params`, `history`,
    `state`, `num_steps` and `num_skipped`.

    Attributes:
      algorithm: that made it.
      key: of the run.
      carry: everything that moves.
      interrupted: by Ctrl-C or a callback.
    """

    algorithm: Algorithm
    key: Key
    carry: Carry
    history: History
    interrupted: bool

    @property
    def params(self) -> Params:
        """The parameters, ready for use; made from the state at every call. Tables on the host are
        numpy's.
        """
        return params_of(self.carry, self.algorithm)

    @property
    def state(self) -> PyTree:
        """The algorithm's state; of `descent`, `state.estimator` holds the running means."""
        return self.carry.state

    @property
    def num_steps(self) -> int:
        """Steps taken in all, those of earlier calls that this one resumed included."""
        return int(self.carry.step)

    @property
    def num_skipped(self) -> int:
        """Steps that were not finite and not applied."""
        return int(self.carry.num_skipped)


class Progress(NamedTuple):
    """What a callback sees, between chunks.

    Attributes:
      result: what `fit` would return if it ended here: `result.params`, `result.history`; it is
        consumed by the steps that follow, so keep what is read from it, not itself.
      step: steps taken so far.
      seconds: since fit was called.
    """

    result: FitResult
    step: int
    seconds: float

    @property
    def params(self) -> Params:
        """The parameters so far, ready for use."""
        return self.result.params

    @property
    def history(self) -> History:
        """What was recorded so far."""
        return self.result.history


class NonFiniteError(FloatingPointError):
    """A step left a NaN or an infinity, or its recorded loss was one. `result` holds the state
    before that step.
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


class BatchError(ValueError):
    """The batches of further steps did not come, or not as they must be. `result` is the run up to
    there.
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result
