"""Numbers of other kinds than float32 on the device: transfers, strict promotion, fewer bits."""

import jax
import jax.numpy as jnp
import optax
import pytest
from fit_problems import DATA, LOCAL, ROWS, SHARED, START, TABLE

import vijax as vj
from vijax import families, rules


@pytest.mark.parametrize(("algorithm", "params"), [(SHARED, START), (ROWS, TABLE)])
def test_fit_moves_nothing_to_the_device_unasked(algorithm, params):
    """A size or a step that is a number of Python's would be moved at every call."""
    key = jax.random.key(3)
    with jax.transfer_guard("disallow"):
        first = vj.fit(key, algorithm, params, DATA, num_steps=3, batch_size=4)
        vj.fit(key, algorithm, None, DATA, num_steps=3, batch_size=4, resume=first)


def test_fit_under_strict_promotion():
    """With sgd: Adam's own bias correction mixes floats and ints."""
    descent = vj.descent(LOCAL, optax.sgd(0.01), rows=vj.rowwise.lazy(optax.sgd(0.01)))
    averaging = vj.algorithms.since(2)
    with jax.numpy_dtype_promotion("strict"):
        result = vj.fit(jax.random.key(3), descent, TABLE, DATA, num_steps=4, averaging=averaging)
    assert bool(jnp.all(jnp.isfinite(result.history.loss)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("rule", "family"),
    [
        (rules.fitted_score_term(), families.diag_normal(2)),
        (rules.double_control_variates(), families.bernoulli(2)),
        (rules.score(), families.bernoulli(2)),
    ],
    ids=lambda given: given.name,
)
def test_parameters_of_fewer_bits_than_the_integrand(rule, family, dtype, x64):
    lam = jax.tree.map(lambda leaf: leaf.astype(dtype), family.init(jax.random.key(0)))
    setting = dict(control=rule.init(jax.random.key(1)), state=rule.init_state(), num_samples=2)

    def value(lam):
        def integrand(s):
            return -jnp.sum(jnp.asarray(s.z, float) ** 2) - s.log_q

        return vj.expect(jax.random.key(2), family, lam, integrand, rule=rule, **setting)[0]

    gradient = jax.eval_shape(jax.grad(value), lam)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}
