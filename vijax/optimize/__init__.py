"""The loop over any algorithm: chunks, minibatches, history, callbacks, resuming."""

from vijax.optimize.checkpoint import restore, save
from vijax.optimize.fit import fit
from vijax.optimize.minibatch import batch_index, steps_per_epoch
from vijax.optimize.results import FitResult, History, NonFiniteError, Progress

__all__ = [
    "FitResult",
    "History",
    "NonFiniteError",
    "Progress",
    "batch_index",
    "fit",
    "restore",
    "save",
    "steps_per_epoch",
]
