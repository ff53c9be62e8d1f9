"""`draws` and what stands on it: global, local and both latents; refined guides are scored as they
are trained; every view of phi is one estimate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close

import vijax as vj
from vijax import densities, families, guides, models, rules

N, D = 6, 2
NORMAL = models.conjugate_normal(D, noise_scale=0.8)
X = np.random.default_rng(0).normal(size=(N, D)) + 1.0
WHOLE = vj.Batch(jnp.asarray(X, jnp.float32), jnp.arange(N))
KEY = jax.random.key(3)


def encoder():
    """A linear encoder that is off."""
    weights = 0.3 * jax.random.normal(jax.random.key(1), (2 * D, D))
    return (lambda key: weights), (lambda phi, x: phi @ x)


GUIDES = {
    "table": guides.per_datapoint(families.diag_normal(D), N),
    "encoder": guides.amortized(families.diag_normal(D), encoder()),
    "refined": guides.semi_amortized(
        guides.amortized(families.diag_normal(D), encoder()), 3, 0.1, num_samples=4
    ),
}


def params_of(guide, model=NORMAL):
    return vj.Params(model.init(KEY), guide.init(KEY), ())


@pytest.mark.parametrize("name", GUIDES)
def test_local_draws_have_their_log_weights(name):
    guide = GUIDES[name]
    seen = vj.draws(KEY, NORMAL, guide, params_of(guide), WHOLE, num_samples=5)
    assert seen.w is None and seen.z.shape == (5, N, D) and seen.log_w.shape == (5, N)
    # A datum's draws do not depend on which others are in the batch, nor on the chunks.
    rows = jnp.array([4, 1])
    some = vj.draws(
        KEY, NORMAL, guide, params_of(guide), vj.Batch(WHOLE.x[rows], rows), num_samples=5
    )
    np.testing.assert_allclose(some.log_w, seen.log_w[:, rows], rtol=1e-5, atol=1e-5)
    chunked = vj.draws(KEY, NORMAL, guide, params_of(guide), WHOLE, num_samples=5, chunk_size=2)
    np.testing.assert_allclose(chunked.z, seen.z, rtol=1e-5, atol=1e-5)
    if name != "refined":
        lam = guides.locate(guide, params_of(guide).phi, WHOLE).lam["z"]
        theta = params_of(guide).theta
        log_p = jax.vmap(jax.vmap(lambda z, x: NORMAL.log_local(theta, None, z, x), (0, None)))
        log_q = jax.vmap(lambda lam, z: families.log_probs(guide.families["z"], lam, z))
        z = jnp.swapaxes(seen.z, 0, 1)
        expected = log_p(z, WHOLE.x) - log_q(lam, z)
        np.testing.assert_allclose(seen.log_w.T, expected, rtol=1e-4, atol=1e-4)


def test_evidence_of_a_global_latent_and_of_both():
    """Importance sampling against the exact log-evidence, in standard errors."""
    hierarchical = models.hierarchical_normal(1, prior_scale=1.3, noise_scale=0.8)
    x = jnp.asarray(X[:3, :1], jnp.float32)
    batch = vj.Batch(x, jnp.arange(3))
    theta = {"log_scale": jnp.array([0.2])}
    exact = hierarchical.posterior(theta, x)
    both = guides.hierarchical(
        w=guides.shared(families.diag_normal(1)), z=guides.per_datapoint(families.diag_normal(1), 3)
    )
    seen = vj.diagnostics.log_evidence(
        KEY, hierarchical, both, vj.Params(theta, exact, ()), batch, num_samples=4000
    )
    assert seen.log_evidence.shape == ()
    away = abs(float(seen.log_evidence - hierarchical.log_evidence(theta, x)))
    assert away < 5.0 * float(seen.standard_error) < 1.0
    drawn = vj.draws(
        KEY, hierarchical, both, vj.Params(theta, exact, ()), batch, num_samples=7, chunk_size=3
    )
    assert drawn.w.shape == (7, 1) and drawn.z.shape == (7, 3, 1) and drawn.log_w.shape == (7,)
    model = models.linear_regression(2, noise_scale=0.5, prior_scale=1.2)
    data = {"features": WHOLE.x, "label": WHOLE.x[:, 0]}
    guide = guides.shared(families.full_normal(2))
    phi = {"w": model.posterior((), data)}
    tight = vj.diagnostics.log_evidence(
        KEY, model, guide, vj.Params((), phi, ()), vj.Batch(data, jnp.arange(N)), num_samples=10
    )
    # q is the posterior: every log-weight is the evidence.
    np.testing.assert_allclose(tight.log_evidence, model.log_evidence((), data), atol=1e-3)
    np.testing.assert_allclose(tight.elbo, tight.log_evidence, atol=1e-3)


def test_rows_beyond_the_table_are_refused():
    guide = GUIDES["table"]
    for rows in ([0, N], [-1, 0]):
        with pytest.raises(ValueError, match="the guide's table has 6 rows"):
            vj.draws(
                KEY,
                NORMAL,
                guide,
                params_of(guide),
                vj.Batch(WHOLE.x[:2], jnp.array(rows)),
                num_samples=2,
            )


def test_a_refined_guide_is_scored_refined():
    """The bound while training is the one that diagnostics report; of the encoder alone it is
    another.
    """
    plain, refined = GUIDES["encoder"], GUIDES["refined"]
    bounds = {}
    for name, guide in (("plain", plain), ("refined", refined)):
        estimator = vj.estimator(NORMAL, guide, rules=rules.pathwise(), num_samples=4, num_data=N)
        params = params_of(guide)._replace(control={"z": ()})
        losses = jax.jit(
            jax.vmap(lambda k, e=estimator, p=params: e.estimate(k, p, {"z": ()}, WHOLE)[0].loss)
        )(jax.random.split(KEY, 500))
        # The refinement has noise of its own: another key is another refined q.
        scored = np.asarray(
            [
                vj.diagnostics.log_evidence(
                    k, NORMAL, guide, params, WHOLE, num_samples=50
                ).elbo.sum()
                for k in jax.random.split(jax.random.key(8), 60)
            ]
        )
        trained = -np.asarray(losses)
        error = np.hypot(trained.std() / 500**0.5, scored.std(ddof=1) / 60**0.5)
        bounds[name] = trained.mean()
        assert abs(trained.mean() - scored.mean()) < 5.0 * error, name
    assert bounds["refined"] > bounds["plain"] + 3.0


def test_refinement_reaches_the_best_of_the_family_and_starts_at_the_encoder():
    """Many steps end at the posterior; none is the guide itself."""
    plain = GUIDES["encoder"]
    none = guides.semi_amortized(plain, 0, 0.1)
    many = guides.semi_amortized(
        plain, 300, 0.1, rule=rules.doubly_reparameterized(), through=False
    )
    params = params_of(plain)
    exact = jax.vmap(NORMAL.log_evidence, (None, 0))(params.theta, WHOLE.x)
    bounds = {
        name: vj.diagnostics.log_evidence(KEY, NORMAL, guide, params, WHOLE, num_samples=200).elbo
        for name, guide in {"plain": plain, "none": none, "many": many}.items()
    }
    np.testing.assert_array_equal(bounds["plain"], bounds["none"])
    np.testing.assert_allclose(bounds["many"], exact, atol=1e-3)
    assert np.all(bounds["plain"] < exact - 0.1)


@pytest.mark.parametrize("rate", [0.05, optax.adam(0.05, eps_root=1e-8)], ids=["sgd", "adam"])
def test_the_gradient_through_the_steps_is_that_of_finite_differences(rate, x64):
    plain = guides.amortized(families.diag_normal(D), encoder())
    guide = guides.semi_amortized(plain, 2, rate, rule=rules.pathwise())
    stopped = guides.semi_amortized(plain, 2, rate, through=False)
    batch = vj.Batch(jnp.asarray(X), jnp.arange(N))
    grads = {}
    for name, one in (("through", guide), ("stopped", stopped)):
        estimator = vj.estimator(NORMAL, one, rules=rules.pathwise(), num_data=N)
        params = params_of(one)._replace(control={"z": ()})
        seen, _ = estimator.estimate(KEY, params, {"z": ()}, batch)
        grads[name] = seen.grads.phi["z"]
    direction = jax.random.normal(jax.random.key(9), grads["through"].shape)

    def loss(size):
        moved = params._replace(phi={"z": params.phi["z"] + size * direction})
        estimator = vj.estimator(NORMAL, guide, rules=rules.pathwise(), num_data=N)
        return estimator.estimate(KEY, moved, {"z": ()}, batch)[0].loss

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(jnp.vdot(grads["through"], direction), slope, rtol=1e-6)
    assert abs(jnp.vdot(grads["stopped"], direction) / slope - 1.0) > 1e-3


def test_a_rate_is_plain_ascent_and_clipped_steps_survive_where_it_does_not():
    """A log-joint 400 times as steep: ascent at the same rate diverges, Adam ends at its mean."""
    plain = guides.amortized(families.diag_normal(D), encoder())
    params = params_of(plain)
    adam = optax.adam(optax.cosine_decay_schedule(0.1, 300), b2=0.9)
    by_rate, by_optax, *steep = (
        guides.semi_amortized(plain, steps, rate, rule=rule, through=False)
        for steps, rate, rule in (
            (3, 0.05, rules.pathwise()),
            (3, optax.sgd(0.05), rules.pathwise()),
            (300, 0.05, rules.doubly_reparameterized()),
            (300, adam, rules.doubly_reparameterized()),
        )
    )

    def located(guide, sharpness):
        def log_joint(theta, z, x):
            return sharpness * jnp.sum(densities.standard_normal(x - z))

        model = vj.models.latent_model(lambda key: (), log_joint)

        def body(key, q, f, x):
            return q.lam["loc"]

        def integrand(x):
            return lambda s: model.log_local((), None, s.z, x) - s.log_q

        return guides.over_data(guide, params.phi, KEY, WHOLE, integrand, body)

    np.testing.assert_array_equal(located(by_rate, 1.0), located(by_optax, 1.0))
    lost, found = (located(guide, 400.0) for guide in steep)
    assert not np.all(np.abs(lost - WHOLE.x) < 1.0)
    np.testing.assert_allclose(found, WHOLE.x, atol=0.05)


@pytest.mark.parametrize("name", GUIDES)
def test_every_view_of_phi_is_one_estimate(name, x64):
    """Dense, row-wise and in lam: equal losses; gradients linked by the chain rule."""
    guide = GUIDES[name]
    estimator = vj.estimator(NORMAL, guide, rules=rules.pathwise(), num_samples=2, num_data=N)
    params = params_of(guide)._replace(control={"z": ()})
    rows = jnp.array([5, 2, 3])
    batch, state = vj.Batch(jnp.asarray(X)[rows], rows), {"z": ()}
    dense, _ = estimator.estimate(KEY, params, state, batch)
    located = vj.in_lam(estimator, params, batch)
    inside, _ = estimator.estimate(KEY, located, state, batch)
    assert_close(inside.loss, dense.loss, tolerance=1e-12)
    _, pull = jax.vjp(lambda phi: guides.locate(guide, phi, batch).lam, params.phi)
    assert_close(pull(inside.grads.phi.lam)[0], dense.grads.phi, tolerance=1e-10)
    if name == "table":
        own = jax.tree.map(lambda leaf: leaf[rows], params.phi)
        by_row, _ = estimator.estimate(KEY, params._replace(phi=vj.rows.Rows(own)), state, batch)
        assert_close(by_row.loss, dense.loss, tolerance=1e-12)
        scattered = jax.tree.map(
            lambda whole, g: jnp.zeros_like(whole).at[rows].add(g), params.phi, by_row.grads.phi.phi
        )
        assert_close(scattered, dense.grads.phi, tolerance=1e-12)


def test_what_cannot_be_differentiated_twice_is_refused():
    """Their surrogates stop something: the gradient through the steps would be wrong, not noisy."""
    for rule in (rules.score(), rules.doubly_reparameterized(), rules.quadratic_control()):
        with pytest.raises(ValueError, match="Write through=False"):
            guides.semi_amortized(GUIDES["table"], 2, 0.1, rule=rule, num_samples=2)
        guides.semi_amortized(GUIDES["table"], 2, 0.1, rule=rule, num_samples=2, through=False)
    refined = guides.semi_amortized(GUIDES["table"], 2, 0.1)
    estimator = vj.estimator(NORMAL, refined, rules=rules.pathwise(), num_data=N)
    with pytest.raises(ValueError, match="this guide refines them further"):
        vj.algorithms.natural_gradient(estimator, refined, 0.5)


def test_replacing_the_estimate_replaces_every_view():
    """An estimate returning 0: the lab sees no variance, fit does not move, nor do the rows."""
    guide = GUIDES["table"]
    right = vj.estimator(NORMAL, guide, rules=rules.pathwise(), num_data=N)

    def zero(key, params, state, batch):
        seen, state = right.estimate(key, params, state, batch)
        return seen._replace(grads=jax.tree.map(jnp.zeros_like, seen.grads)), state

    estimator = right._replace(estimate=zero)
    params = estimator.init_params(KEY)
    moved = vj.fit(KEY, vj.descent(estimator, optax.adam(0.1)), params, X, num_steps=5).params
    jax.tree.map(np.testing.assert_array_equal, params, moved)
    for place in (params, vj.in_lam(estimator, params, WHOLE)):
        report = vj.lab.gradient_report(KEY, estimator, place, {"z": ()}, WHOLE, num_draws=10)
        assert float(jnp.max(report.blocks.variance)) == 0.0


def test_shared_parts_of_lam_are_no_rows():
    """A table of means with one scale for all data: its gradient is the sum over data."""
    guide = guides.with_shared(GUIDES["table"], "log_scale")
    phi = guide.init(KEY)
    assert phi["z"]["loc"].shape == (N, D) and phi["z"]["log_scale"].shape == (D,)
    assert guide.is_table(phi) == {"z": {"loc": True, "log_scale": False}}
    estimator = vj.estimator(NORMAL, guide, rules=rules.pathwise(), num_data=N)
    params = estimator.init_params(KEY)
    ours, _ = estimator.estimate(KEY, params, {"z": ()}, WHOLE)
    table = GUIDES["table"]
    spread = params._replace(
        phi={"z": params.phi["z"] | {"log_scale": jnp.tile(params.phi["z"]["log_scale"], (N, 1))}}
    )
    every, _ = vj.estimator(NORMAL, table, rules=rules.pathwise(), num_data=N).estimate(
        KEY, spread, {"z": ()}, WHOLE
    )
    assert_close(
        ours.grads.phi["z"]["log_scale"],
        every.grads.phi["z"]["log_scale"].sum(axis=0),
        tolerance=1e-5,
    )
    result = vj.fit(
        KEY, vj.descent(estimator, optax.adam(0.1)), params, X, num_steps=5, batch_size=3
    )
    assert result.params.phi["z"]["log_scale"].shape == (D,)
    start = {"loc": jnp.full(D, 5.0), "log_scale": jnp.full(D, -3.0)}
    own = guides.per_datapoint(families.diag_normal(D), N, init=lambda key: start)
    np.testing.assert_array_equal(guides.with_shared(own, "loc").init(KEY)["z"]["loc"], 5.0)
    with pytest.raises(ValueError, match="shares already"):
        guides.with_shared(guide, "loc")
    with pytest.raises(ValueError, match="name some, not all"):
        guides.with_shared(GUIDES["table"], "loc", "log_scale")
    with pytest.raises(ValueError, match="give a guide made by per_datapoint"):
        guides.with_shared(GUIDES["encoder"], "loc")


def test_steps_without_a_derivative_at_a_slope_of_zero_are_refused():
    """Adam's root: the gradient through it would be NaN for every number that has no say."""
    plain = GUIDES["table"]
    for rate in (optax.adam(0.1), optax.nadam(0.1)):
        with pytest.raises(ValueError, match="no derivative where a number of lam has a slope"):
            guides.semi_amortized(plain, 2, rate)
        guides.semi_amortized(plain, 2, rate, through=False)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    for rate in (optax.adam(0.1, eps_root=1e-8), optax.rmsprop(0.1), clipped):
        guides.semi_amortized(plain, 2, rate)
    jax.jit(lambda: guides.semi_amortized(plain, 2, clipped) and 0)()  # built while traced


def test_rates_and_steps_that_are_none_are_refused():
    for rate in (0.0, float("inf"), float("nan"), True, None, lambda step: 0.1):
        with pytest.raises(ValueError, match="a finite rate above 0 or an optax optimiser"):
            guides.semi_amortized(GUIDES["table"], 2, rate)
    for steps in (2.5, "2", True):
        with pytest.raises(ValueError, match="an int of at least 0 steps"):
            guides.semi_amortized(GUIDES["table"], steps, 0.1)
    assert guides.semi_amortized(GUIDES["table"], 2, np.float32(0.1))


def test_tables_on_the_host_give_the_same_draws():
    guide, rows = GUIDES["table"], jnp.array([4, 1])
    params, batch = params_of(guide), vj.Batch(WHOLE.x[rows], rows)
    params = params._replace(phi=jax.tree.map(lambda leaf: leaf + WHOLE.x, params.phi))
    hosted = params._replace(phi=jax.tree.map(np.asarray, params.phi))

    def seen(params):
        return vj.draws(KEY, NORMAL, guide, params, batch, num_samples=5)

    jax.tree.map(np.testing.assert_array_equal, seen(params), seen(hosted))
    under_jit = jax.jit(lambda batch: vj.draws(KEY, NORMAL, guide, hosted, batch, num_samples=5))
    jax.tree.map(np.testing.assert_array_equal, seen(params), under_jit(batch))


def test_only_the_rows_of_the_batch_leave_the_host():
    """Of a table that no machine has the addresses for."""
    size, wide = 2**31 - 1, 2**15
    guide = guides.per_datapoint(families.diag_normal(wide), size)
    model = models.latent_model(
        lambda key: (), lambda theta, z, x: jnp.sum(densities.standard_normal(z)) + 0.0 * x
    )
    row = {"loc": np.zeros(wide, np.float32), "log_scale": np.zeros(wide, np.float32)}
    table = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (size, wide)), row)
    params = vj.Params((), {"z": table}, ())
    batch = vj.Batch(jnp.zeros(2), jnp.array([size - 1, 3]))
    assert vj.draws(KEY, model, guide, params, batch, num_samples=2).z.shape == (2, 2, wide)
    given = (KEY, model, guide, params, batch)
    evidence = vj.diagnostics.log_evidence(*given, num_samples=2)
    np.testing.assert_allclose(evidence.elbo, 0.0, atol=0.1)  # float32 sums of 32,768 numbers
    gaps = vj.diagnostics.inference_gap(*given, steps=1, rate=1e-6, fit_samples=1, num_samples=2)
    np.testing.assert_allclose(gaps.bound.value, 0.0, atol=0.1)
    annealed = vj.diagnostics.annealed_evidence(
        KEY, model, params, batch, start=guide, num_chains=2, num_temperatures=1, num_leapfrog=1
    )
    assert annealed.evidence.elbo.shape == (2,)
