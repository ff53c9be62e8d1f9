"""The settings of `fit`, refused where they cannot be meant."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vijax.algorithms import Averaging
from vijax.host import stays
from vijax.inference import Algorithm
from vijax.types import PyTree


def check_hooks(averaging: object, callbacks: object) -> None:
    """Refuse what is no average, and what is no list of functions."""
    if not isinstance(averaging, Averaging | None):
        raise TypeError(
            f"fit: averaging={averaging!r} is no average. Write algorithms.since(step) or "
            "algorithms.exponential(decay)."
        )
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError("fit: callbacks must be a list of functions: write callbacks=[callback].")


def check_settings(
    algorithm: Algorithm,
    data: PyTree,
    batch_size: int | None,
    num_steps: int,
    record_every: int,
    chunk_size: int | None,
    *,
    outside: bool,
) -> None:
    """Refuse numbers that cannot be meant, and data of another size or without numbers.

    Args:
      outside: is `data` an iterator?
    """
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"fit takes an algorithm, not {type(algorithm).__name__}: for an estimator and an "
            "optax optimiser write fit(key, vijax.descent(estimator, optimizer), params, data, "
            "num_steps=...)."
        )
    settings = {"num_steps": num_steps, "record_every": record_every, "chunk_size": chunk_size or 1}
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"fit: {name}={value!r} must be an int of at least 1.")
    num_data = algorithm.num_data
    if num_data >= 2**31:
        raise ValueError(
            f"fit: num_data={num_data}, but rows are numbered in 32 bits: give fewer than 2^31 "
            "data, each of them several if need be."
        )
    if outside:
        if batch_size is not None:
            raise ValueError(
                "fit: data is an iterator, which brings its own batches; leave batch_size out."
            )
        return
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if sizes != {(num_data,)}:
        raise ValueError(
            f"fit: the algorithm was built for num_data={num_data}, but the leaves of data have "
            f"leading sizes {sorted(sizes)}. Pass the whole data set here; minibatches are drawn "
            "from it by batch_size."
        )
    arrays = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, np.ndarray)]
    for leaf in arrays:
        if not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_):
            raise ValueError(
                f"fit: data of type {leaf.dtype} are no numbers. Open the file with the dtype that "
                "it was written with, or convert them."
            )
    if batch_size is None and any(map(stays, arrays)):
        raise ValueError(
            "fit: data that stay on the host (np.memmap, vijax.on_host) reach the device by "
            "batches, but without batch_size every step takes all of them. Write batch_size=."
        )
    if batch_size is not None and not 1 <= batch_size <= num_data:
        raise ValueError(
            f"fit: batch_size={batch_size} must lie between 1 and num_data={num_data}."
        )
