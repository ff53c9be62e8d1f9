"""`hoist`: the same numbers, drawn ahead; and what must not be moved."""

import jax
import jax.numpy as jnp
import numpy as np

from vijax.optimize.hoist import hoist

KEY, STEP, X = jax.random.key(0), jnp.int32(3), jnp.linspace(-1.0, 1.0, 5)


def noisy(key, step, x):
    """Draws that depend on the step, one that does not, and one keyed by what is not known
    ahead.
    """
    fixed, moving = jax.random.split(jax.random.fold_in(key, 0))[0], jax.random.fold_in(key, step)
    rows = jax.vmap(jax.random.fold_in, (None, 0))(moving, jnp.arange(5))
    noise = jax.vmap(jax.random.normal)(rows)
    late = jax.random.uniform(jax.random.fold_in(moving, (x[0] * 10).astype(jnp.int32)))
    picked = x[jax.random.randint(moving, (4,), 0, 5)]
    return {
        "z": x * noise + jax.random.normal(fixed),
        "late": late,
        "picked": picked,
        "clock": step * 2,
    }


def bits(key, step, x):
    return jax.random.bits(jax.random.fold_in(key, step), (7,)) + x.astype(jnp.uint32)[0]


def test_the_two_parts_equal_the_whole():
    cut = hoist(noisy, KEY, STEP, X)
    whole, parts = noisy(KEY, STEP, X), cut.finish(cut.ahead(KEY, STEP), KEY, STEP, X)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_block_drawn_at_once_has_the_bits_of_single_steps():
    cut = hoist(bits, KEY, STEP, X)
    block = jax.jit(jax.vmap(cut.ahead, (None, 0)))(KEY, jnp.arange(10))
    for step in range(10):
        np.testing.assert_array_equal(
            cut.finish([leaf[step] for leaf in block], KEY, step, X),
            jax.jit(bits)(KEY, jnp.int32(step), X),
        )


def test_only_randomness_of_the_step_crosses():
    cut = hoist(noisy, KEY, STEP, X)
    shapes = sorted((leaf.shape, str(leaf.dtype)) for leaf in jax.eval_shape(cut.ahead, KEY, STEP))
    # The key from which `late` is folded, the indices, the noise: not `step * 2`, no row of x,
    # nothing of `fixed`.
    assert [shape for shape, _ in shapes] == [(), (4,), (5,)] or [s for s, _ in shapes] == [
        (),
        (4, 1),
        (5,),
    ]
    assert cut.num_bytes <= 8 + 4 * 4 + 5 * 4


def test_nothing_random_means_nothing_ahead():
    cut = hoist(lambda key, step, x: x * step, KEY, STEP, X)
    assert cut.ahead(KEY, STEP) == []
    assert cut.num_bytes == 0


def test_the_bits_check_catches_a_key_that_forgets_the_step():
    cut = hoist(lambda key, step, x: bits(key, step * 0, x), KEY, STEP, X)
    assert not np.array_equal(cut.finish(cut.ahead(KEY, STEP), KEY, STEP, X), bits(KEY, STEP, X))
