"""Does an estimator keep what it promises? One call, and its two halves."""

import jax
import jax.numpy as jnp
import numpy as np

from vijax.inference import Estimate, Estimator
from vijax.rows import scale
from vijax.shapes import check_batch, same_shapes
from vijax.testing.averages import (
    Average,
    assert_agree,
    assert_close,
    assert_partition,
    assert_same_bits,
    average,
    exactly,
)
from vijax.testing.measured import Agreement, gradient_draws, single_calls, slopes
from vijax.types import Batch, Key, Params, PyTree

BIASED = (
    "The gradient is not that of the bound: a dropped term, a wrong sign, a wrong N / B, or an "
    "objective that this gradient is not made for"
)
FOLLOWS = (
    "The mean gradient is not the slope of the mean loss: a wrong sign or scale, or a gradient "
    "that is biased or of something else on purpose (then say follows_loss=False)"
)


def check_estimator(
    estimator: Estimator,
    params: Params,
    batch: Batch,
    exact: Estimate | Params | None = None,
    *,
    key: Key | None = None,
    state: PyTree = None,
    reference: Estimator | None = None,
    num_draws: int = 4000,
    max_z: float = 5.0,
    follows_loss: bool = True,
    minibatches: bool = True,
) -> dict[str, float]:
    """Everything that an estimator promises, at one place and in the float type of params: loss and
    gradient go down, the minibatches of an epoch average to the whole, noise follows the datum and
    the key, jit changes nothing; and the mean gradient is the exact one, that of a reference, or
    else the slope of the mean loss.

    Args:
      batch: a few data, best all of them.
      exact: the exact gradient of the loss, with the loss if it is an `Estimate`; `control` is not
        looked at.
      key: of the draws; default `jax.random.key(0)`.
      state: default `estimator.init(key, params)`.
      reference: an estimator that is known to be right, measured with as many draws.
      num_draws: S.
      max_z: what counts as different, in standard errors.
      follows_loss: is the gradient meant to be that of the loss? Looked at where there is neither
        `exact` nor `reference`.
      minibatches: is it for minibatches at all? Not so for a non-linear objective of a global
        latent.

    Returns:
      {property: its largest difference in standard errors}.

    Raises:
      AssertionError: what does not hold, by how much, and what that usually means.
    """
    key = jax.random.key(0) if key is None else key
    state = estimator.init(key, params) if state is None else state
    check_batch(batch)
    _check_rows(estimator, batch)
    if minibatches:
        check_calls(estimator, params, batch, key=key, state=state)
    found = check_gradient(
        estimator,
        params,
        batch,
        exact,
        key=key,
        state=state,
        reference=reference,
        num_draws=num_draws,
        max_z=max_z,
    )
    if exact is None and reference is None and follows_loss:
        pair = slopes(
            jax.random.fold_in(key, 2), estimator, params, state, batch, num_draws=num_draws
        )
        what, meaning = "along random directions", f"{FOLLOWS}."
        _, z = assert_agree(*pair, what=what, meaning=meaning, max_z=max_z, rounding=2e-4)
        found["slope"] = z
    return found


def check_gradient(
    estimator: Estimator,
    params: Params,
    batch: Batch,
    exact: Estimate | Params | None = None,
    *,
    key: Key,
    state: PyTree,
    reference: Estimator | None = None,
    num_draws: int = 4000,
    max_z: float = 5.0,
) -> dict[str, float]:
    """The statistical half of `check_estimator`: the draws' mean against what it should be; the
    order of the rows does not matter.
    """
    draws, reversed_rows = gradient_draws(key, estimator, params, state, batch, num_draws=num_draws)
    same_shapes(jax.tree.map(lambda leaf: leaf[0], draws.grads), params, "the gradient")
    tolerance = rounding_of(params)
    first = jax.tree.map(lambda leaf: leaf[0], draws)
    what = "with the rows in another order, the estimate"
    assert_close(reversed_rows, first, tolerance=tolerance, what=what)
    found: dict[str, float] = {}
    ours = _seen(average(without_control(draws)))
    theirs = None if exact is None else exactly(_full(exact, ours.mean))
    if reference is not None:
        other = jax.random.fold_in(key, 1)
        given = other, reference, params, reference.init(other, params), batch
        theirs = _seen(average(without_control(gradient_draws(*given, num_draws=num_draws)[0])))
    if theirs is not None:
        meaning, rounding = f"{BIASED}.", max(1e-9, tolerance)
        found["gradient"] = assert_agree(
            ours, theirs, meaning=meaning, max_z=max_z, rounding=rounding
        )[1]
    return found


def check_calls(
    estimator: Estimator,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    state: PyTree,
    eager: bool = True,
) -> Agreement:
    """The exact half of `check_estimator`: single calls with one key agree to rounding.

    Args:
      eager: call it uncompiled too, which takes most of the time.
    """
    size = batch.index.shape[0]
    cut = [list(range(size // 2)), list(range(size // 2, size))] if size > 1 else []
    seen = single_calls(key, estimator, params, state, batch, cut)
    tolerance = rounding_of(params)
    assert_same_bits(seen.whole, seen.again)
    if cut:
        parts = f"B = {len(cut[0])} and {len(cut[1])} of {size}"
        _partition(seen.whole, seen.parts, list(map(len, cut)), parts, tolerance)
        _partition(seen.whole, seen.singles, [1] * size, "single data", tolerance)
    vmapped = jax.tree.map(lambda leaf: leaf[0], seen.vmapped)
    assert_close(vmapped, seen.whole, tolerance=tolerance, what="vmap over keys against one call")
    if eager:
        result = estimator.estimate(key, params, state, batch)[0]._replace(aux=())
        assert_close(result, seen.whole, tolerance=tolerance, what="eager against compiled")
    return seen


def without_control(estimate: Estimate) -> Estimate:
    """The gradient of a learned baseline is no part of the bound's gradient."""
    return estimate._replace(grads=estimate.grads._replace(control=()))


def rounding_of(params: Params) -> float:
    """What sums in another order may differ by, in the float type of params."""
    leaves = jax.tree.leaves(params)
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return 1e-12 if jnp.finfo(dtype).bits == 64 else 2e-4


def _partition(
    whole: Estimate, parts: list[Estimate], sizes: list[int], what: str, tolerance: float
) -> None:
    try:
        assert_partition(whole, parts, sizes, tolerance=tolerance)
    except AssertionError as wrong:
        raise AssertionError(
            f"the estimates of the minibatches ({what}) do not average to that of the batch: "
            f"{wrong}. N / B is missing or applied twice, or noise is keyed by the slot and not by "
            "the datum's row."
        ) from wrong


def _check_rows(estimator: Estimator, batch: Batch) -> None:
    most = int(np.max(np.asarray(batch.index)))
    assert most < estimator.num_data, (
        f"the batch has row {most}, but the estimator's num_data is {estimator.num_data}: the "
        "bound is scaled to another number of data."
    )
    assert scale(estimator.num_data, batch) >= 1.0, "the batch is larger than the data set."


def _full(exact: Estimate | Params, like: Estimate) -> Estimate:
    """As an Estimate; without a loss of its own it takes ours, which is then not looked at."""
    whole = exact if isinstance(exact, Estimate) else Estimate(like.loss, exact, ())
    same_shapes(
        whole.grads._replace(control=()), like.grads._replace(control=()), "the exact gradient"
    )
    return without_control(whole)._replace(aux=())


def _seen(figure: Average) -> Average:
    return jax.device_get(figure)
