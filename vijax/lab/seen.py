"""What `compare` looks at of each estimator, and what it makes of the bias of all of them."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vijax.inference import Estimator
from vijax.lab import bias
from vijax.lab.blocks import Blocks
from vijax.lab.cost import evaluations
from vijax.lab.learned import Place
from vijax.lab.moments import groups, measure
from vijax.lab.reference import Reference
from vijax.lab.report import report
from vijax.types import Batch, Key


class Seen(NamedTuple):
    """Of one estimator.

    Attributes:
      blocks: its figures.
      means: block -> mean, where there is no reference to test it against.
      squares: block -> [S] |g - mean|^2 of every draw.
      evaluations: of the log-joint, per gradient.
    """

    blocks: Blocks
    means: Mapping[str, bias.Mean]
    squares: Mapping[str, np.ndarray]
    evaluations: int


class Judged(NamedTuple):
    """Of all estimators in one block.

    Attributes:
      status: [E] as in `Comparison`.
      worst_z: [E].
      p_value: [E].
      zero: [E] is the gradient 0 in every draw?
    """

    status: np.ndarray
    worst_z: np.ndarray
    p_value: np.ndarray
    zero: np.ndarray


def look(
    key: Key,
    estimator: Estimator,
    own: Place,
    batch: Batch,
    reference: Reference | None,
    num_draws: int,
    chunk_size: int | None,
) -> Seen:
    """The figures of one estimator at its own place."""
    moments = measure(
        key,
        estimator,
        own.params,
        own.state,
        batch,
        num_draws=num_draws,
        chunk_size=chunk_size,
        keep_squares=True,
        quick_compile=True,
    )
    squares = np.asarray(moments.squares, np.float64)
    names, found = groups(own.params)[0], report(moments, own.params, reference)
    tested = [block for block in ("theta", "phi") if block in names and reference is None]
    return Seen(
        blocks=found.blocks,
        means={block: bias.mean_of(found, block) for block in tested},
        squares={block: squares[:, i] for i, block in enumerate(names)},
        evaluations=evaluations(estimator, own.params, own.state, batch),
    )


def of_block(seen: Iterable[Seen], block: str, column: str) -> np.ndarray:
    """[E] a column of `Blocks` in one block."""
    row = [(getattr(one.blocks, column), one.blocks.block.index(block)) for one in seen]
    return np.asarray([float(values[i]) for values, i in row])


def judge(
    block: str, seen: Mapping[str, Seen], unbiased: Collection[str] | None, num_draws: int
) -> Judged:
    """The status of all, and the figures that it rests on."""
    each = list(seen.values())
    variance, norm, worst, p_value = (
        of_block(each, block, column) for column in ("variance", "norm", "worst_z", "p_value")
    )
    finite = np.isfinite(variance) & np.isfinite(norm)
    zero = (variance == 0.0) & (norm == 0.0)
    if block in each[0].means:
        claims = np.asarray([unbiased is None or name in unbiased for name in seen])
        claims &= finite & ~zero
        z, p_of_pairs = bias.pairs([one.means[block] for one in each], num_draws)
        status = bias.against_each_other(p_of_pairs, claims)
        others = claims[None, :] & ~np.eye(len(each), dtype=bool)
        tested = np.any(others, axis=1) & finite
        worst = np.where(tested, np.max(z, axis=1, initial=0.0, where=others), np.nan)
        p_value = np.where(tested, np.min(p_of_pairs, axis=1, initial=1.0, where=others), np.nan)
    else:
        status = bias.against_reference(p_value)
    status = np.where(zero, bias.ZERO, np.where(finite, status, bias.BROKEN))
    return Judged(status, worst, p_value, zero)
