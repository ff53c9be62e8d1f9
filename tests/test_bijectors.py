"""Bijectors against their own Jacobians, numpyro and float64: inverse, log-determinant, the float32
edge of every support, trees, dtypes, refusals.

A simplex stands for its first K - 1 entries, a correlation Cholesky factor for those below the
diagonal: `free` takes them out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64
from numpyro.distributions import biject_to, constraints
from scipy import special

from vijax import bijectors, supports

SUPPORTS = {
    "real": (supports.real(3), constraints.real),
    "positive": (supports.positive(2, 2), constraints.positive),
    "interval": (supports.interval(-2.0, 5.0, 3), constraints.interval(-2.0, 5.0)),
    "unit_interval": (supports.interval(0.0, 1.0, 3), constraints.unit_interval),
    "ordered": (supports.ordered(4), constraints.ordered_vector),
    "simplex": (supports.simplex(4), constraints.simplex),
    "correlation_cholesky": (supports.correlation_cholesky(4), constraints.corr_cholesky),
}
# Beyond these u, the floats nearest to the edge are too coarse to tell u: of numbers near an end
# that is not 0, and of steps against the sums before them. The others keep u.
FLOAT32_REACH = {"interval": (6.0, 1e-4), "unit_interval": (6.0, 1e-4), "ordered": (3.0, 1e-4)}


def free(support, x):
    """The coordinates that the density is of, [D]."""
    if support.name == "simplex":
        return x[:-1]
    return x[np.tril_indices(len(x), -1)] if support.name == "correlation_cholesky" else x.ravel()


def points(bijector, spread, num=6):
    return np.random.default_rng(0).uniform(-spread, spread, (num, bijector.size))


def mapped(bijector, u):
    """(x, u again, log-determinant, gradient of a function of all three), one compilation."""

    def one(u):
        def total(u):
            again = bijector.inverse(bijector.forward(u))
            return jnp.sum(jnp.sin(again)) - bijector.log_det(again) + bijector.log_det(u)

        x = bijector.forward(u)
        return x, bijector.inverse(x), bijector.log_det(u), jax.grad(total)(u)

    return jax.device_get(jax.jit(jax.vmap(one))(u))


@pytest.mark.parametrize("name", SUPPORTS)
def test_round_trip_and_log_determinant(name, x64):
    support, constraint = SUPPORTS[name]
    bijector, transform = bijectors.onto(support), biject_to(constraint)
    u = jnp.asarray(points(bijector, 3.0))
    steps = 1e-5 * np.eye(bijector.size)

    def one(u):
        def coordinates(u):
            return free(support, bijector.forward(u))

        differences = jax.vmap(lambda h: (coordinates(u + h) - coordinates(u - h)) / 2e-5)(steps)
        theirs = transform.log_abs_det_jacobian(u, transform(u))
        return jax.jacfwd(coordinates)(u), differences, transform(u), jnp.sum(theirs)

    exact, differences, x_numpyro, log_det_numpyro = jax.jit(jax.vmap(one))(u)
    x, again, log_det, _ = mapped(bijector, u)
    assert x.shape == (len(u), *support.shape)
    np.testing.assert_allclose(again, u, rtol=1e-11, atol=1e-11)
    for jacobian, tolerance in ((exact, 1e-11), (differences, 1e-7)):
        numerical = np.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(log_det, numerical, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(x.reshape(x_numpyro.shape), x_numpyro, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(log_det, log_det_numpyro, rtol=1e-10, atol=1e-10)


def test_jacobian_check_catches_other_coordinates(x64):
    """The volume on the simplex itself is not that of its free coordinates."""
    bijector = bijectors.onto(supports.simplex(4))
    u = points(bijector, 3.0)[0]
    jacobian, log_det = jax.jit(lambda u: (jax.jacfwd(bijector.forward)(u), bijector.log_det(u)))(u)
    whole = 0.5 * np.linalg.slogdet(jacobian.T @ jacobian)[1]
    assert abs(whole - log_det) > 0.1


def strictly_inside(support, x):
    """Of x [K, ...], in its own floats."""
    low, high = support.bounds or (0.0, np.inf)
    return bool(
        {
            "real": lambda: np.isfinite(x).all(),
            "positive": lambda: ((x > 0.0) & np.isfinite(x)).all(),
            "interval": lambda: ((x > np.float32(low)) & (x < np.float32(high))).all(),
            "ordered": lambda: (np.diff(x) > 0.0).all() and np.isfinite(x).all(),
            "simplex": lambda: (x > 0.0).all() and np.allclose(x.sum(-1), 1.0, atol=1e-6),
            "correlation_cholesky": lambda: (
                (np.diagonal(x, axis1=1, axis2=2) > 0.0).all()
                and np.allclose(np.square(x).sum(-1), 1.0, atol=1e-6)
                and (np.triu(x, 1) == 0.0).all()
            ),
        }[support.name]()
    )


@pytest.mark.parametrize("name", SUPPORTS)
def test_float32_at_large_u(name):
    """x stays strictly inside, nothing is infinite, and the log-determinant has all its digits."""
    support = SUPPORTS[name][0]
    bijector = bijectors.onto(support)
    u = np.concatenate([points(bijector, spread) for spread in (2.5, 14.0, 40.0, 300.0)])
    u = u.astype(np.float32)
    x, again, log_det, slope = mapped(bijector, u)
    assert x.dtype == again.dtype == log_det.dtype == slope.dtype == jnp.float32
    with enable_x64():
        x_exact, _, log_det_exact, _ = mapped(bijector, jnp.asarray(u, jnp.float64))
    assert strictly_inside(support, np.asarray(x))
    assert np.isfinite(again).all() and np.isfinite(slope).all()
    np.testing.assert_allclose(log_det, log_det_exact, rtol=2e-6, atol=2e-6)
    reach, tolerance = FLOAT32_REACH.get(name, (10.0, 1e-5))
    kept = np.abs(u).max(axis=1) < reach
    assert kept.sum() >= 6
    np.testing.assert_allclose(again[kept], u[kept], rtol=tolerance, atol=tolerance)
    near = np.abs(u).max(axis=1) <= 14.0
    np.testing.assert_allclose(x[near], x_exact[near], rtol=2e-5, atol=1e-5)


def test_float32_check_catches_numpyros_formulas():
    """What is written in other formulas here has to be: numpyro's lose it."""
    u = np.random.default_rng(0).uniform(-14.0, 14.0, (20, 6)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        for constraint in (constraints.simplex, constraints.corr_cholesky):
            transform = biject_to(constraint)
            log_det = jax.jit(jax.vmap(lambda u, t=transform: t.log_abs_det_jacobian(u, t(u))))
            with enable_x64():
                exact = log_det(jnp.asarray(u, jnp.float64))
            assert not np.allclose(log_det(u), exact, rtol=1e-4)


TREE = {
    "tau": supports.positive(),
    "mu": supports.real(2),
    "rest": (supports.simplex(3), {"share": supports.interval(0.0, 1.0, 1, 2)}),
}


def test_tree_is_cut_in_the_order_of_its_leaves(x64):
    bijector = bijectors.onto(TREE)
    assert bijector.name == (
        "{mu: real(2), rest: (simplex(3), {share: interval(0, 1, 1, 2)}), tau: positive()}"
    )
    assert bijector.size == 7 and bijector.support == TREE
    u = points(bijector, 2.0)[0]
    simplex, share = bijectors.onto(supports.simplex(3)), bijectors.onto(TREE["rest"][1])

    def one(u):
        x = bijector.forward(u)
        alone = simplex.log_det(u[2:4]) + share.log_det(u[4:6]) + u[6]
        return x, bijector.inverse(x), bijector.log_det(u), simplex.forward(u[2:4]), alone

    x, again, log_det, shares, alone = jax.jit(one)(u)
    np.testing.assert_array_equal(x["mu"], u[:2])
    np.testing.assert_allclose(x["rest"][0], shares, rtol=1e-12)
    np.testing.assert_allclose(x["rest"][1]["share"], special.expit(u[None, 4:6]), rtol=1e-12)
    np.testing.assert_allclose(x["tau"], np.exp(u[6]), rtol=1e-12)
    np.testing.assert_allclose(again, u, rtol=1e-11)
    np.testing.assert_allclose(log_det, alone, rtol=1e-12)


def test_float32_is_kept_under_x64(x64):
    bijector = bijectors.onto({name: support for name, (support, _) in SUPPORTS.items()})

    def every(u):
        x = bijector.forward(u)
        return x, bijector.inverse(x), bijector.log_det(u)

    found = jax.eval_shape(every, jax.ShapeDtypeStruct((bijector.size,), jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_single_points_have_no_coordinates():
    bijector = bijectors.onto([supports.simplex(1), supports.correlation_cholesky(1)])
    assert bijector.size == 0
    x, again, log_det, _ = mapped(bijector, np.zeros((1, 0), np.float32))
    assert x[0].item() == x[1].item() == 1.0 and again.shape == (1, 0) and log_det.item() == 0.0


def test_many_ordered_steps_below_rounding_stay_apart():
    bijector = bijectors.onto(supports.ordered(200))
    u = np.full((2, 200), -60.0, np.float32)
    u[:, 0], u[:, 100] = [0.0, 1e6], 3.0
    x, again, _, _ = mapped(bijector, u)
    assert np.all(np.diff(x) > 0.0) and np.isfinite(again).all()


@pytest.mark.parametrize(
    ("support", "problem"),
    [
        (supports.binary(3), "separate points.*families.bernoulli"),
        (supports.one_hot(3), "separate points.*families.categorical"),
        (supports.counts(2), "separate points.*families.poisson"),
        (supports.circle(), "one point.*families.von_mises"),
        (supports.moving(), "depends on the family's parameters.*fixed support"),
        (supports.interval(0.0, np.inf), "ends must be finite.*supports.positive"),
        (supports.real()._replace(name="torus"), "no map onto it is known.*Bijector"),
        ({"a": supports.real(2), "b": supports.binary(3)}, r"onto\(binary\(3\)\)"),
        ({}, "no tree of supports"),
        ({"a": 3}, "no tree of supports"),
    ],
    ids=str,
)
def test_what_cannot_be_reached_is_refused(support, problem):
    with pytest.raises(ValueError, match=problem):
        bijectors.onto(support)


def test_wrong_shapes_are_refused():
    bijector = bijectors.onto({"mu": supports.real(2), "tau": supports.positive()})
    with pytest.raises(AssertionError, match="shape"):
        bijector.forward(jnp.zeros(4))
    with pytest.raises(AssertionError, match="shape"):
        bijector.inverse({"mu": jnp.zeros(3), "tau": jnp.ones(())})
