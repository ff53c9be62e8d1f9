"""What tail-adaptive weights do to a fit: wider than the ELBO's where the target is not normal, the
same where it is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy import stats

import vijax as vj
from vijax import path_weights, rules
from vijax.families import diag_normal

FAMILY, NUM_SAMPLES, NUM_STEPS, NUM_FITS = diag_normal(1), 64, 600, 8
TARGETS = {
    "heavy_tails": lambda z: stats.t.logpdf(z, 2.0),
    "two_modes": lambda z: jnp.logaddexp(
        stats.norm.logpdf(z, -2.0, 0.7), stats.norm.logpdf(z, 2.0, 0.7)
    ),
    "normal": lambda z: stats.norm.logpdf(z, 0.7, 1.3),
}
RULES = {
    "elbo": rules.doubly_reparameterized(),
    "tail": rules.doubly_reparameterized(path_weights.tail_adaptive()),
}


def fits(rule, target):
    """Mean and standard deviation of q [F] after as many fits, each with noise of its own."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS))

    def loss(lam, key):
        return -vj.expect(
            key, FAMILY, lam, lambda s: target(s.z[0]) - s.log_q, rule=rule, num_samples=NUM_SAMPLES
        )[0]

    def step(carry, key):
        lam, state = carry
        updates, state = optimizer.update(jax.grad(loss)(lam, key), state)
        return (optax.apply_updates(lam, updates), state), None

    def fit(key):
        lam = {"loc": jnp.array([0.5]), "log_scale": jnp.zeros(1)}
        (lam, _), _ = jax.lax.scan(
            step, (lam, optimizer.init(lam)), jax.random.split(key, NUM_STEPS)
        )
        return lam["loc"][0], jnp.exp(lam["log_scale"][0])

    return jax.device_get(jax.jit(jax.vmap(fit))(jax.random.split(jax.random.key(0), NUM_FITS)))


def excess(wide, narrow):
    """How much larger on average, in standard errors of paired differences."""
    difference = wide - narrow
    return difference.mean() / (difference.std(ddof=1) / len(difference) ** 0.5)


@pytest.mark.parametrize("name", ["heavy_tails", "two_modes"])
def test_it_covers_more_mass_than_the_elbo(name):
    (_, plain), (_, wide) = (fits(RULES[rule], TARGETS[name]) for rule in ("elbo", "tail"))
    assert excess(wide, plain) > 5.0


def test_the_elbo_fit_is_the_optimum_and_ranks_upside_down_would_narrow_it():
    """Heavy tails: KL(q || p) by quadrature is least at the ELBO's scale; planted: the smallest
    weight has rank 1.
    """
    grid, step = np.linspace(-60.0, 60.0, 40_001, retstep=True)
    scales = np.linspace(1.0, 2.0, 401)
    log_q = -0.5 * (grid[None] / scales[:, None]) ** 2 - np.log(
        scales[:, None] * np.sqrt(2.0 * np.pi)
    )
    log_p = np.asarray(TARGETS["heavy_tails"](grid), np.float64)
    best = scales[np.argmin(step * np.sum(np.exp(log_q) * (log_q - log_p[None]), axis=1))]
    loc, plain = fits(RULES["elbo"], TARGETS["heavy_tails"])
    assert (
        abs(plain.mean() - best) < 5.0 * plain.std(ddof=1) / NUM_FITS**0.5 + 0.0025
    )  # the grid's step
    assert abs(loc.mean()) < 5.0 * loc.std(ddof=1) / NUM_FITS**0.5

    tail = path_weights.tail_adaptive()
    upside_down = tail._replace(
        factor=lambda objective, log_w, slope: tail.factor(objective, -log_w, slope)
    )
    _, narrow = fits(rules.doubly_reparameterized(upside_down), TARGETS["heavy_tails"])
    assert excess(narrow, plain) < -5.0


def test_a_target_inside_the_family_is_found_by_both():
    """The path derivative vanishes at the target, sample by sample, whatever multiplies it."""
    for rule in RULES.values():
        loc, scale = fits(rule, TARGETS["normal"])
        np.testing.assert_allclose(loc, np.full(NUM_FITS, 0.7), atol=1e-4)
        np.testing.assert_allclose(scale, np.full(NUM_FITS, 1.3), atol=1e-4)
