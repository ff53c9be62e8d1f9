"""Annealed importance sampling: unbiased weights in both directions, faults are caught, the
sandwich holds the exact evidence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import vijax as vj
from vijax import diagnostics, families, guides, models
from vijax.diagnostics.annealing import GAIN, Move, anneal, hamiltonian, temperatures

KEY = jax.random.key(5)
CHAINS, SCALE, LOC, LOG_Z = 4000, 0.7, 0.8, 1.7


def ends(u):
    """N(0, I_2), and exp(LOG_Z) N(LOC, SCALE^2 I_2)."""
    end = vj.densities.normal(u, LOC, jnp.log(SCALE)).sum() + LOG_Z
    return vj.densities.standard_normal(u).sum(), end


def ladder(move, *, down=False, size=1.1):
    """z-score of the mean weight against the exact one."""
    betas, u = temperatures(6), jax.random.normal(jax.random.key(1), (CHAINS, 2))
    if down:
        betas, u = betas[::-1], LOC + SCALE * u
    run = jax.jit(
        lambda key: anneal(key, u, ends, betas, jnp.full(6, size), num_leapfrog=3, move=move)
    )
    log_w = np.asarray(run(KEY).log_w, np.float64)
    relative = np.exp(log_w + (LOG_Z if down else -LOG_Z))
    return (relative.mean() - 1.0) / (relative.std(ddof=1) / CHAINS**0.5)


def unadjusted(key, u, log_density, size, num_steps):
    """Planted: Metropolis' rule left out."""
    # The same draws of the momentum, and the same path
    first, _ = jax.random.split(key)
    p, slope = jax.random.normal(first, u.shape), jax.grad(log_density)
    for _ in range(num_steps):
        p = p + 0.5 * size * slope(u)
        u = u + size * p
        p = p + 0.5 * size * slope(u)
    return Move(u, jnp.ones(()))


def without_the_momentum(key, u, log_density, size, num_steps):
    """Planted: the kinetic energy left out of Metropolis' rule."""
    new = unadjusted(key, u, log_density, size, num_steps).u
    gain = jnp.minimum(log_density(new) - log_density(u), 0.0)
    taken = jnp.log(jax.random.uniform(jax.random.split(key)[1])) < gain
    return Move(jnp.where(taken, new, u), jnp.exp(gain))


@pytest.mark.parametrize("down", [False, True])
def test_weights_are_unbiased_whatever_the_ladder(down):
    """Six temperatures, steps near the edge of stability: far from equilibrium."""
    assert abs(ladder(hamiltonian, down=down)) < 5.0


@pytest.mark.parametrize("fault", [unadjusted, without_the_momentum], ids=lambda f: f.__name__)
def test_moves_that_leave_another_density_are_caught(fault):
    assert max(abs(ladder(fault)), abs(ladder(fault, down=True))) > 5.0


def moved(move):
    """z-scores of both moments after a move from exact draws of the target."""
    u = LOC + SCALE * jax.random.normal(jax.random.key(2), (CHAINS, 2))
    keys = jax.random.split(KEY, CHAINS)
    run = jax.jit(jax.vmap(lambda k, u: move(k, u, lambda u: ends(u)[1], 1.1, 3)))
    after = run(keys, u)
    standard = (np.asarray(after.u) - LOC).ravel() / SCALE
    scores = [standard.mean() * standard.size**0.5, (np.mean(standard**2) - 1.0)]
    scores[1] /= (2.0 / standard.size) ** 0.5
    return np.abs(scores), float(after.acceptance.mean()), np.mean(np.any(after.u != u, axis=1))


def test_a_move_leaves_its_density_and_counts_what_it_accepts():
    scores, acceptance, share = moved(hamiltonian)
    assert np.max(scores) < 5.0
    error = (acceptance * (1.0 - acceptance) / CHAINS) ** 0.5
    assert 0.2 < acceptance < 0.9 and abs(acceptance - share) < 5.0 * error


def test_a_pilot_finds_step_sizes_for_any_scale():
    betas = temperatures(60)

    @jax.jit
    def run(scale):
        def ends(u):
            both = vj.densities.normal(u, 0.0, jnp.log(scale)).sum()
            return both, both

        u, first = scale * jax.random.normal(KEY, (16, 3)), jnp.full(60, 0.3)
        sizes = anneal(KEY, u, ends, betas, first, num_leapfrog=5, gain=GAIN).sizes
        return anneal(
            KEY, u, ends, betas, jnp.full(60, sizes[-1]), num_leapfrog=5
        ).acceptance.mean()

    for scale in (1e-2, 1.0, 1e2):
        assert 0.5 < run(scale) < 0.97


def relative_weights(found, exact):
    """Of unbiased estimates of p(x) over p(x), their z-score against 1."""
    values = np.exp(np.asarray(found, np.float64) - np.asarray(exact, np.float64))
    return (values.mean() - 1.0) / (values.std(ddof=1) / len(values) ** 0.5)


NORMAL = models.conjugate_normal(2, noise_scale=0.4)
THETA = {"loc": jnp.array([0.5, -0.5]), "log_scale": jnp.array([0.3, -0.3])}
N = 100
SHORT = {"num_chains": 4, "num_temperatures": 8, "num_leapfrog": 3, "chunk_size": N}


def test_the_evidence_is_unbiased_from_the_prior_and_from_a_guide():
    """A short ladder, four chains: E[w] = p(x) for every datum."""
    _, x = NORMAL.simulate(KEY, THETA, N)
    batch, exact = vj.Batch(x, jnp.arange(N)), jax.vmap(NORMAL.log_evidence, (None, 0))(THETA, x)
    prior = diagnostics.annealed_evidence(KEY, NORMAL, vj.Params(THETA, (), ()), batch, **SHORT)
    guide = guides.per_datapoint(families.diag_normal(2), N)
    lam = jax.vmap(NORMAL.posterior, (None, 0))(THETA, x)
    off = jax.tree.map(lambda leaf: leaf + 0.3, lam)  # away from the posterior, and wider
    fitted = vj.Params(THETA, {"z": off}, ())
    near = diagnostics.annealed_evidence(KEY, NORMAL, fitted, batch, start=guide, **SHORT)
    for found in (prior, near):
        assert abs(relative_weights(found.evidence.log_evidence, exact)) < 5.0
        assert found.acceptance.shape == (N,) and np.all(found.acceptance > 0.1)
    assert near.evidence.standard_error.mean() < 0.5 * prior.evidence.standard_error.mean()


def test_a_long_ladder_finds_the_evidence():
    """Of a global latent, from the prior."""
    model = models.linear_regression(3, noise_scale=0.7)
    _, x = model.simulate(KEY, (), 20)
    batch, exact = vj.Batch(x, jnp.arange(20)), model.log_evidence((), x)
    found = diagnostics.annealed_evidence(
        KEY, model, vj.Params((), (), ()), batch, num_chains=200, num_temperatures=100
    ).evidence
    assert abs(float(found.log_evidence - exact)) < 5.0 * float(found.standard_error) < 0.6
    assert found.elbo <= found.log_evidence and bool(found.reliable)


def test_latents_with_a_support_are_moved_on_the_whole_line():
    """z ~ Gamma(a, b), x | z ~ Poisson(z): the evidence is a negative binomial's."""
    shape, rate = 2.0, 0.5
    family = families.gamma(1)
    located = {"log_shape": jnp.full(1, np.log(shape)), "log_rate": jnp.full(1, np.log(rate))}

    def log_lik(theta, z, x):
        return jnp.sum(x * jnp.log(z) - z - jax.scipy.special.gammaln(x + 1.0))

    model = vj.models.latent_model(
        lambda key: (), log_lik=log_lik, prior=vj.Prior(family, lambda theta: located)
    )
    x = jnp.array([[0.0], [3.0], [12.0]])
    found = diagnostics.annealed_evidence(
        KEY,
        model,
        vj.Params((), (), ()),
        vj.Batch(x, jnp.arange(3)),
        num_chains=256,
        num_temperatures=50,
        num_leapfrog=5,
    ).evidence
    exact = stats.nbinom.logpmf(np.asarray(x[:, 0]), shape, rate / (1.0 + rate))
    away = np.abs(found.log_evidence - exact) / found.standard_error
    assert np.max(away) < 5.0 and np.max(found.standard_error) < 0.1


def test_the_sandwich_holds_the_exact_evidence_and_closes():
    model = models.probabilistic_pca(4, 2)
    theta = {
        "weights": jax.random.normal(jax.random.key(1), (4, 2)),
        "bias": jnp.zeros(4),
        "log_noise": jnp.array(-0.3),
    }
    gaps = {}
    for num in (2, 40):
        seen = diagnostics.sandwich(
            KEY,
            model,
            theta,
            400,
            num_chains=4,
            num_temperatures=num,
            num_leapfrog=4,
            chunk_size=400,
        )
        exact = jax.vmap(model.log_evidence, (None, 0))(theta, seen.x)
        below, above = exact - seen.lower.value, seen.upper.value - exact
        errors = [gap.std(ddof=1) / 20.0 for gap in (below, above)]
        assert below.mean() > -5.0 * errors[0] and above.mean() > -5.0 * errors[1]
        gaps[num] = below.mean(), above.mean(), errors
    assert abs(relative_weights(-seen.upper.value, -exact)) < 5.0  # E[1 / w] = 1 / p(x)
    assert abs(relative_weights(seen.lower.value, exact)) < 5.0
    loose, tight = gaps[2], gaps[40]
    assert loose[0] > 5.0 * loose[2][0] and loose[1] > 5.0 * loose[2][1]
    assert max(tight[:2]) < 0.2 * min(loose[:2])


def test_the_sandwich_of_a_global_latent():
    model = models.linear_regression(2)
    seen = diagnostics.sandwich(KEY, model, (), 10, num_chains=128, num_temperatures=150)
    exact = float(model.log_evidence((), seen.x))
    assert seen.lower.value.shape == seen.upper.value.shape == ()
    assert abs(float(seen.lower.value) - exact) < 5.0 * float(seen.lower.standard_error) < 0.6
    assert abs(float(seen.upper.value) - exact) < 0.5


def bits():
    prior = vj.Prior(families.bernoulli(2), lambda theta: {"logits": jnp.zeros(2)})
    return models.latent_model(
        lambda key: (), log_lik=lambda theta, z, x: jnp.sum(z) * x[0], prior=prior
    )


def unstated():
    return models.latent_model(lambda key: (), lambda theta, z, x: -jnp.sum((x - z) ** 2))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (bits(), {}, "separate points"),
        (unstated(), {}, "give start=guide"),
        (models.hierarchical_normal(1), {}, "either a global or a local latent"),
        (NORMAL, {"num_chains": 1}, "at least 2 chains"),
        (NORMAL, {"num_temperatures": 0}, "num_temperatures=0"),
        (NORMAL, {"num_leapfrog": 0}, "num_leapfrog=0"),
    ],
)
def test_what_cannot_be_annealed_is_refused(model, settings, message):
    batch = vj.Batch(jnp.zeros((2, 2)), jnp.arange(2))
    with pytest.raises(ValueError, match=message):
        diagnostics.annealed_evidence(KEY, model, vj.Params((), (), ()), batch, **settings)
    with pytest.raises(ValueError, match=message):
        diagnostics.sandwich(KEY, model, (), 2, **settings)


def test_a_sandwich_needs_simulated_data():
    with pytest.raises(ValueError, match="cannot simulate"):
        diagnostics.sandwich(KEY, NORMAL._replace(simulate=None), THETA, 2)
