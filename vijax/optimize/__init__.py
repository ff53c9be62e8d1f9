"""The loop over any algorithm: chunks, minibatches, history, callbacks, resuming."""

from vijax.optimize.checkpoint import restore, save
from vijax.optimize.fit import fit
from vijax.optimize.keeping import Checkpoint
from vijax.optimize.minibatch import batch_index, steps_per_epoch
from vijax.optimize.results import BatchError, FitResult, History, NonFiniteError, Progress
from vijax.optimize.stateful import Replay, Stateful

__all__ = [
    "BatchError",
    "Checkpoint",
    "FitResult",
    "History",
    "NonFiniteError",
    "Progress",
    "Replay",
    "Stateful",
    "batch_index",
    "fit",
    "restore",
    "save",
    "steps_per_epoch",
]
