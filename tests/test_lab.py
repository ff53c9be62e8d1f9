"""The gradient report: figures within their errors of closed forms, errors that cover, and bias
found as often as it can be.
"""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_close
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

import vijax as vj
from vijax import lab
from vijax.lab import moments as moments_module
from vijax.lab.blocks import LEVEL
from vijax.lab.moments import groups, measure
from vijax.lab.reference import flat
from vijax.lab.report import derive

M, LOG_S = 0.4, 0.3
SHIFT = 6.0  # k of f = (x - k)^2
HEAVY_DRAWS = 30_000  # fourth moments of a cubic need many


def one_dimensional(integrand, rule):
    """(estimator, params, state, batch) of the expectation under q = N(M, S^2) of anything: an
    Estimator made by hand.
    """
    family = vj.families.diag_normal(1)

    def estimate(key, params, state, batch):
        def loss(phi):
            return -vj.expect(key, family, phi, integrand, rule=rule)[0]

        value, gradient = jax.value_and_grad(loss)(params.phi)
        return vj.Estimate(value, vj.Params((), gradient, ()), ()), state

    params = vj.Params((), {"loc": jnp.full(1, M), "log_scale": jnp.full(1, LOG_S)}, ())
    made = vj.estimator_from(estimate, lambda key: params, num_data=1)
    return made, params, (), vj.Batch(jnp.zeros(1), jnp.zeros(1, jnp.int32))


@pytest.fixture(scope="module")
def setting():
    """Total pathwise gradient of the ELBO on N(0, 1): Var[dm] = s^2, identity 7 with S = 1."""
    return one_dimensional(
        lambda s: vj.densities.standard_normal(s.z[0]) - s.log_q, vj.rules.pathwise()
    )


@pytest.fixture(scope="module")
def heavy():
    """Score function without a baseline for -E[(z - k)^2]: fourth moments far from a normal
    draw's.
    """
    return one_dimensional(lambda s: -((s.z[0] - SHIFT) ** 2), vj.rules.score(vj.baselines.none()))


def heavy_variances():
    """Of the score function with f = (x - k)^2, in m and in log s; Mohamed et al. 2020, figure 2
    (identity 27).
    """
    s2, d = np.exp(2 * LOG_S), M - SHIFT
    return {
        "loc": d**4 / s2 + 14 * d**2 + 15 * s2,
        "log_scale": s2 * (2 * d**4 / s2 + 60 * d**2 + 74 * s2),
    }


def test_known_variances_are_recovered_within_their_errors(setting, heavy):
    report = lab.gradient_report(jax.random.key(1), *setting, num_draws=20_000)
    score = lab.gradient_report(jax.random.key(2), *heavy, num_draws=100_000)
    exact = [
        (report, "loc", np.exp(2 * LOG_S)),
        *((score, name, value) for name, value in heavy_variances().items()),
    ]
    for of, name, value in exact:
        z = (of.variance.phi[name].item() - value) / of.variance_error.phi[name].item()
        assert abs(z) < 5.0, (
            f"{name}: variance {of.variance.phi[name].item():.4g} against {value:.4g}, z = {z:.1f}"
        )
    total = sum(heavy_variances().values())
    row = score.blocks.block.index("phi")
    assert abs(score.blocks.variance[row] - total) < 5.0 * score.blocks.variance_error[row]
    assert abs(report.mean.phi["loc"].item() - M) < 5.0 * report.mean_error.phi["loc"].item()


def repeats(setting, reference=None, *, num_draws=1500, num_repeats=200):
    """The figures of independent reports, leaves [R, ...]: dict of trees, columns of the blocks."""
    estimator, params, state, batch = setting

    def one(key):
        shape = (3, num_draws // 3)
        moments = moments_module._measure(
            key,
            params,
            state,
            batch,
            num_draws,
            estimator=estimator,
            shape=shape,
            sharding=None,
            keep=False,
        )
        known = None if reference is None else flat(reference, params)
        return derive(moments._replace(squares=None, num_draws=num_draws), params, known)

    return jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), num_repeats)))


def coverage(value, error, exact):
    return float(
        np.mean(
            np.abs(np.asarray(value, np.float64) - exact) <= 1.96 * np.asarray(error, np.float64)
        )
    )


def test_reported_errors_are_calibrated(heavy):
    """95 % intervals cover the closed forms in 90 to 99 % of 200 repeats, for gradients that are
    not normal.
    """
    figures, columns = repeats(heavy, num_draws=HEAVY_DRAWS)
    names = lab.Blocks._fields[1:]
    # Phi, both leaves together
    block = {name: column[:, 0] for name, column in zip(names, columns, strict=True)}
    variances = heavy_variances()
    s = np.exp(LOG_S)
    means = {"loc": 2 * (M - SHIFT), "log_scale": 2 * s * s}
    seen = {}
    for name in ("loc", "log_scale"):
        column = {
            field: figures[field].phi[name].ravel()
            for field in figures
            if figures[field] is not None
        }
        seen[f"mean {name}"] = coverage(column["mean"], column["mean_error"], means[name])
        seen[f"variance {name}"] = coverage(
            column["variance"], column["variance_error"], variances[name]
        )
        snr = abs(means[name]) / variances[name] ** 0.5
        seen[f"snr {name}"] = coverage(column["snr"], column["snr_error"], snr)
    total = sum(variances.values())
    seen["norm"] = coverage(
        block["norm"], block["norm_error"], sum(m * m for m in means.values()) ** 0.5
    )
    seen["variance"] = coverage(block["variance"], block["variance_error"], total)
    seen["snr"] = coverage(
        block["snr"], block["snr_error"], (sum(m * m for m in means.values()) / total) ** 0.5
    )
    outside = {name: share for name, share in seen.items() if not 0.90 <= share <= 0.99}
    assert not outside, f"coverage of 95 % intervals: {outside}"
    # Planted: the error that normal draws would have.
    normal = figures["variance"].phi["log_scale"].ravel() * (2.0 / HEAVY_DRAWS) ** 0.5
    assert (
        coverage(figures["variance"].phi["log_scale"].ravel(), normal, variances["log_scale"])
        < 0.90
    )


def biased(setting, by):
    """The same estimator with a constant added to one element's gradient."""
    estimator, *rest = setting

    def estimate(key, params, state, batch):
        result, state = estimator.estimate(key, params, state, batch)
        phi = {**result.grads.phi, "loc": result.grads.phi["loc"] + by}
        return result._replace(grads=result.grads._replace(phi=phi)), state

    return (estimator._replace(estimate=estimate), *rest)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_planted_bias_is_flagged_as_often_as_the_power_says(setting, share):
    """At 0, 0.5 and 1 times the bias that the report calls detectable: 5 %, the normal power, and
    95 % of 200 repeats.
    """
    gradient = {"loc": jnp.full(1, M), "log_scale": jnp.full(1, np.exp(2 * LOG_S) - 1.0)}
    exact = lab.Reference(setting[1]._replace(phi=gradient))
    num_draws, level = 1500, LEVEL
    sd = np.exp(LOG_S)
    per_test = 1.0 - (1.0 - level) ** 0.5  # two elements
    reach = -jax.scipy.special.ndtri(per_test / 2.0)
    by = share * float(reach - jax.scipy.special.ndtri(level)) * sd / num_draws**0.5
    _, columns = repeats(biased(setting, by), exact, num_draws=num_draws)
    flagged = np.mean(columns[lab.Blocks._fields.index("p_value") - 1][:, 0] < level)
    shift = by / (sd / num_draws**0.5)
    found = float(jax.scipy.special.ndtr(shift - reach) + jax.scipy.special.ndtr(-reach - shift))
    power = 1.0 - (1.0 - found) * (1.0 - per_test)
    assert abs(flagged - power) < 4.0 * (power * (1.0 - power) / 200) ** 0.5, (
        f"flagged {flagged:.3f}, power {power:.3f}"
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 25])
def test_chunks_do_not_change_the_moments(setting, chunk_size):
    """The streaming moments are those of the draws themselves, however they are cut."""
    moments = measure(jax.random.key(1), *setting, num_draws=25, chunk_size=chunk_size)
    draws = draws_of(setting, 25)
    away = draws - draws.mean(axis=0)
    assert moments.num_draws == 25
    expected = (
        draws.mean(axis=0),
        draws.var(axis=0, ddof=1),
        (away**3).mean(axis=0),
        (away**4).mean(axis=0),
    )
    for seen, exact in zip(moments[:4], expected, strict=True):
        assert_close(seen, exact, tolerance=1e-5)


def test_errors_of_many_parameters_do_not_depend_on_chunks():
    """|g - m|^2 of 1,000 elements hardly varies from draw to draw; a mean of few draws must not
    make it seem to.
    """
    reports = [
        lab.gradient_report(jax.random.key(1), *wide(), num_draws=200, chunk_size=c).blocks
        for c in (4, 50, 200)
    ]
    exact = (2.0 * 1000 / 200) ** 0.5
    for blocks in reports:
        np.testing.assert_allclose(blocks.variance_error[0], exact, rtol=5.0 * (0.5 / 200) ** 0.5)
        np.testing.assert_allclose(blocks.variance[0], 1000.0, atol=5.0 * exact)


def wide():
    """1,000 standard normal elements; an Estimator made by hand."""
    params = vj.Params((), jnp.zeros(1000), ())

    def estimate(key, params, state, batch):
        return vj.Estimate(
            jnp.zeros(()), vj.Params((), jax.random.normal(key, (1000,)), ()), ()
        ), state

    made = vj.estimator_from(estimate, lambda key: params, num_data=1)
    return made, params, (), vj.Batch(jnp.zeros(1), jnp.zeros(1, jnp.int32))


def test_few_draws_raise_no_false_alarm():
    """Student's tails: with 20 draws of 1,000 elements, a test at 5 % fires in about 5 % of 60
    repeats, not in most.
    """
    zero = lab.Reference(wide()[1])
    reports = [
        lab.gradient_report(jax.random.key(i), *WIDE, num_draws=20, reference=zero)
        for i in range(60)
    ]
    assert (
        np.mean([float(r.blocks.p_value[0]) < 0.05 for r in reports])
        < 0.05 + 3.0 * (0.05 * 0.95 / 60) ** 0.5
    )


WIDE = wide()  # one object, one program


def draws_of(setting, num_draws):
    """[S, P], one after the other."""
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(num_draws)]
    estimate = jax.jit(lambda key: ravel_pytree(setting[0].estimate(key, *setting[1:])[0].grads)[0])
    return np.asarray([estimate(key) for key in keys], np.float64)


def test_devices_do_not_change_the_moments(setting):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("draws",))
    spread = NamedSharding(mesh, PartitionSpec("draws"))
    assert spread.num_devices > 1
    for chunk_size in (None, 2):  # with 2, fewer than there are devices
        one, many = (
            measure(jax.random.key(1), *setting, num_draws=50, sharding=s, chunk_size=chunk_size)
            for s in (None, spread)
        )
        assert_close(one[:4], many[:4], tolerance=1e-5)


def test_memory_does_not_grow_with_the_draws(setting):
    estimator, params, state, batch = setting

    def temporary(num_chunks):
        lowered = moments_module._measure.lower(
            jax.random.key(0),
            params,
            state,
            batch,
            50 * num_chunks,
            estimator=estimator,
            shape=(num_chunks, 50),
            sharding=None,
            keep=False,
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(200) <= temporary(2) + 4096


def test_what_cannot_be_measured_is_refused(setting):
    with pytest.raises(ValueError, match="num_draws=1, but a variance needs at least 2"):
        lab.gradient_report(jax.random.key(0), *setting, num_draws=1)
    wrong = lab.Reference(setting[1]._replace(phi={"loc": jnp.zeros(2)}))
    with pytest.raises(ValueError, match="the reference has shapes"):
        lab.gradient_report(jax.random.key(0), *setting, num_draws=10, reference=wrong)
    with pytest.raises(TypeError, match="a Reference holds Params"):
        lab.gradient_report(
            jax.random.key(0), *setting, num_draws=10, reference=lab.Reference({"loc": 0.0})
        )
    with pytest.raises(ValueError, match="chunk_size=0"):
        lab.gradient_report(jax.random.key(0), *setting, num_draws=10, chunk_size=0)


def test_an_exact_estimator_has_no_bias_beyond_rounding():
    """Enumeration: variance 0, the bias a rounding error, and no alarm."""
    family = vj.families.bernoulli(3)
    model = vj.models.latent_model(
        lambda key: jnp.arange(3.0), lambda theta, z, x: jnp.sum(jnp.sin(theta * z)) * x
    )
    made = vj.estimator(
        model, vj.guides.per_datapoint(family, 1), rules=vj.rules.enumerated(), num_data=1
    )
    params, batch = (
        made.init_params(jax.random.key(0)),
        vj.Batch(jnp.ones(1), jnp.zeros(1, jnp.int32)),
    )
    gradient = jax.jit(made.estimate)(jax.random.key(9), params, {"z": ()}, batch)[0].grads
    off = jax.tree.map(lambda g: g * (1.0 + 1e-6), gradient)
    for reference, flagged in ((off, False), (jax.tree.map(lambda g: 1.01 * g, gradient), True)):
        blocks = lab.gradient_report(
            jax.random.key(1),
            made,
            params,
            {"z": ()},
            batch,
            num_draws=10,
            reference=lab.Reference(reference),
        ).blocks
        assert blocks.block[:2] == ("theta", "phi")
        assert (
            bool(np.all(blocks.p_value[:2] < 1e-3)) == flagged and float(blocks.variance[1]) < 1e-10
        )


@pytest.mark.parametrize("num_latents", [1, 2])
def test_groups_are_named_by_latent_and_leaf_in_either_view_of_phi(num_latents):
    lam = {"loc": jnp.zeros((3, 2)), "log_scale": jnp.zeros((3, 2))}
    phi = {"w": {"logits": jnp.zeros(2)}, "z": lam} if num_latents == 2 else {"z": lam}
    params = vj.Params({"bias": jnp.zeros(())}, phi, ())
    names, members = groups(params)
    leaves = ("phi/z/loc", "phi/z/log_scale")
    assert names == ("theta", "phi", *(("phi/w/logits",) if num_latents == 2 else ()), *leaves)
    for view in (vj.rows.Lam(phi), vj.rows.Rows(phi)):
        seen = groups(params._replace(phi=view))
        assert seen[0] == names
        np.testing.assert_array_equal(seen[1], members)


def test_a_report_in_lam_is_per_datum_and_free_of_the_encoder():
    """An encoder's lam of three data: the mean agrees with the exact gradient in lam, and a bias
    planted in one datum's is found in its leaf.
    """
    problem = problems.binary()
    batch = problems.batch_of(problem, (0, 1, 2))
    made = vj.estimator(problem.model, problem.guide, rules=vj.rules.disarm(), num_data=problems.N)
    exact = vj.estimator(
        problem.model, problem.guide, rules=vj.rules.enumerated(), num_data=problems.N
    )
    params = made.init_params(jax.random.key(0))
    params = params._replace(phi=problems.generic(params.phi))
    place = vj.in_lam(made, params, batch)
    gradient = exact.estimate(jax.random.key(0), place, {"z": ()}, batch)[0].grads
    planted = gradient._replace(phi=jax.tree.map(lambda leaf: leaf.at[1, 2].add(0.3), gradient.phi))
    for right, flagged in ((gradient, False), (planted, True)):
        report = lab.gradient_report(
            jax.random.key(1),
            made,
            place,
            {"z": ()},
            batch,
            num_draws=2000,
            reference=lab.Reference(right),
        )
        assert report.variance.phi.lam["z"]["logits"].shape == (3, 3)
        assert "phi" in report.blocks.block and not any("lam" in n for n in report.blocks.block)
        row = report.blocks.block.index("phi")
        assert (float(report.blocks.p_value[row]) < 1e-3) == flagged
    worst = jnp.abs(report.bias.phi.lam["z"]["logits"] / report.bias_error.phi.lam["z"]["logits"])
    assert int(jnp.argmax(worst)) == 5


def test_the_dataframe_holds_every_block(setting, tmp_path):
    report = lab.gradient_report(jax.random.key(1), *setting, num_draws=10)
    table = lab.to_dataframe(report)
    assert list(table.block) == ["phi", "phi/loc", "phi/log_scale"] and list(table.columns) == list(
        lab.Blocks._fields
    )
    table.to_csv(tmp_path / "report.csv", index=False)
    table.to_json(tmp_path / "report.json")
    np.testing.assert_allclose(table.variance[0], table.variance[1] + table.variance[2], rtol=1e-5)
