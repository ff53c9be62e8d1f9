"""Minibatch indices: a bijection for every N, whole epochs, uniformity, the tail, and faults that
these checks catch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vijax.optimize.minibatch import batch_index, permute, steps_per_epoch

SIZES = [1, 2, 3, 7, 16, 17, 100, 257, 1021, 99_991]


def epoch_of(key, num_data, batch_size, epoch):
    per_epoch = steps_per_epoch(num_data, batch_size)
    steps = epoch * per_epoch + jnp.arange(per_epoch)
    draw = jax.jit(
        jax.vmap(lambda step: batch_index(key, step, num_data=num_data, batch_size=batch_size))
    )
    return np.asarray(draw(steps))


def uniformity_p_value(index, num_data):
    """Of the chi-square test that every row is equally likely at every position; `index` [draws,
    positions].
    """
    worst = 1.0
    for column in np.asarray(index).T:
        worst = min(worst, stats.chisquare(np.bincount(column, minlength=num_data)).pvalue)
    return worst * index.shape[1]  # Bonferroni


@pytest.mark.parametrize("num_data", SIZES)
def test_permute_is_a_bijection(num_data):
    image = jax.jit(lambda: permute(jax.random.key(num_data), jnp.arange(num_data), num_data))()
    np.testing.assert_array_equal(np.sort(np.asarray(image)), np.arange(num_data))


@pytest.mark.parametrize(("num_data", "batch_size"), [(10, 10), (12, 4), (101, 100)])
def test_every_epoch_visits_every_datum_in_full_batches(num_data, batch_size):
    orders = []
    for epoch in range(2):
        index = epoch_of(jax.random.key(3), num_data, batch_size, epoch)
        assert index.shape == (steps_per_epoch(num_data, batch_size), batch_size)
        # Without replacement within a batch
        assert all(len(set(row)) == batch_size for row in index.tolist())
        full = num_data // batch_size
        # And within the even part of the epoch
        assert len(set(index[:full].ravel().tolist())) == full * batch_size
        assert set(index.ravel().tolist()) == set(range(num_data))
        orders.append(index)
    if num_data > 4:
        assert not np.array_equal(*orders)  # another epoch is another permutation


def test_the_tail_reaches_back_into_the_batch_before():
    index = epoch_of(jax.random.key(0), 10, 4, 0)
    assert set(index[2, :2]) == set(index[1, 2:])


def test_the_same_step_gives_the_same_rows_and_another_key_others():
    def draw(seed):
        return batch_index(jax.random.key(seed), jnp.int32(5), num_data=1000, batch_size=20)

    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


@pytest.mark.parametrize("num_data", [3, 4, 5, 7, 8, 12, 13, 24, 64])
def test_every_row_is_equally_likely_at_every_position(num_data):
    keys = jax.random.split(jax.random.key(1), 4000)
    index = jax.jit(jax.vmap(lambda key: permute(key, jnp.arange(num_data), num_data)))(keys)
    assert uniformity_p_value(index, num_data) > 1e-4


@pytest.mark.parametrize("num_data", [3, 5, 8, 12, 64])
def test_neighbouring_positions_are_independent(num_data):
    """Pairs (image of 0, image of 1): all N (N - 1) ordered pairs equally likely."""
    keys, n = jax.random.split(jax.random.key(2), 40_000), num_data
    pair = np.asarray(jax.jit(jax.vmap(lambda key: permute(key, jnp.arange(2), n)))(keys))
    counts = np.bincount(pair[:, 0] * n + pair[:, 1], minlength=n * n).reshape(n, n)
    assert np.trace(counts) == 0
    assert stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-4


def test_a_biased_shuffle_is_caught():
    """A rotation by one of N - 1 offsets is a bijection, but position 0 never gets row 0."""
    offsets = np.random.default_rng(0).integers(1, 13, size=4000)
    index = (np.arange(13) + offsets[:, None]) % 13
    assert uniformity_p_value(index, 13) < 1e-4
