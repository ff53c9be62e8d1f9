"""Comparisons: paired intervals that cover, ties that are ties, counted costs; slopes, sources of
variance, lam space.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_close

import vijax as vj
from vijax import lab
from vijax.catalogue import CATALOGUE
from vijax.families import FiniteSupport, lam_like
from vijax.lab import cost
from vijax.lab.moments import _measure, measure
from vijax.lab.ranking import log_ratios, ranks, relative_times
from vijax.rules import closed_form_entropy, doubly_reparameterized, pathwise, score

MEAN, SPREAD = 1.0, 0.5


def noisy(scale):
    """An Estimator made by hand whose gradient is Normal(MEAN, (scale SPREAD)^2) in two elements,
    from common noise.
    """

    def estimate(key, params, state, batch):
        noise = scale * SPREAD * jax.random.normal(key, (2,))
        return vj.Estimate(
            jnp.zeros(()), vj.Params((), {"a": MEAN + noise[0], "b": MEAN + noise[1]}, ()), ()
        ), state

    params = vj.Params((), {"a": jnp.zeros(()), "b": jnp.zeros(())}, ())
    return vj.estimator_from(estimate, lambda key: params, num_data=1)


def independent(estimator):
    """The same with noise of its own."""
    estimate = estimator.estimate
    return estimator._replace(
        estimate=lambda key, *rest: estimate(jax.random.fold_in(key, 7), *rest)
    )


HAND = {
    "one": noisy(1.0),
    "same": noisy(1.0),
    "other": independent(noisy(1.0)),
    "double": noisy(2.0),
}
BATCH = vj.Batch(jnp.zeros(1), jnp.zeros(1, jnp.int32))


@pytest.fixture(scope="module")
def comparison():
    params = HAND["one"].init_params(jax.random.key(0))
    exact = lab.Reference(params._replace(phi={"a": jnp.full((), MEAN), "b": jnp.full((), MEAN)}))
    return lab.compare(
        jax.random.key(1), HAND, params, BATCH, num_draws=2000, reference=exact, rounds=6
    )


def test_shared_noise_cancels_in_ratios_and_ranks(comparison):
    row = {name: i for i, name in enumerate(comparison.estimator)}
    for name, ratio in (("same", 1.0), ("double", 4.0)):  # the same noise: no uncertainty at all
        i = row[name]
        np.testing.assert_allclose(
            [comparison.ratio_low[i], comparison.ratio[i], comparison.ratio_high[i]],
            ratio,
            rtol=1e-4,
        )
    other = row["other"]
    assert comparison.ratio_low[other] < 1.0 < comparison.ratio_high[other]
    assert list(comparison.rank) == [1, 1, 1, 4]
    np.testing.assert_allclose(
        comparison.variance[0], 2 * SPREAD**2, atol=5 * comparison.variance_error[0]
    )
    np.testing.assert_allclose(comparison.snr[0], MEAN / SPREAD, atol=5 * comparison.snr_error[0])
    assert np.all(comparison.p_value > 1e-6) and np.all(comparison.microseconds > 0.0)
    assert np.all(comparison.efficiency_low <= comparison.efficiency)


def test_intervals_of_ratios_cover():
    """95 % intervals of independent and of paired ratios cover in 90 to 99 % of 200 repeats;
    unpaired ones are too wide.
    """
    exact = {"other": 0.0, "quarter": np.log(4.0)}

    def partly(scale):  # shares half of its noise
        first, second = noisy(scale / 2**0.5), independent(noisy(scale / 2**0.5))

        def estimate(key, *rest):
            (a, state), (b, _) = first.estimate(key, *rest), second.estimate(key, *rest)
            return a._replace(
                grads=jax.tree.map(lambda x, y: x + y - MEAN, a.grads, b.grads)
            ), state

        return first._replace(estimate=estimate)

    made = {"one": noisy(1.0), "other": HAND["other"], "quarter": partly(2.0)}
    params = made["one"].init_params(jax.random.key(0))

    def repeat(key):
        return [measure_squares(key, one, params) for one in made.values()]

    squares = np.stack(
        jax.device_get(jax.jit(jax.vmap(repeat))(jax.random.split(jax.random.key(2), 200))), axis=1
    )
    inside = dict.fromkeys(exact, 0)
    unpaired = 0
    for draws in squares.astype(float):  # [E, S]
        variance = draws.sum(axis=1) / (draws.shape[1] - 1)
        log_ratio, error = log_ratios(variance, draws)
        for i, name in enumerate(exact, start=1):
            inside[name] += abs(log_ratio[i, 0] - exact[name]) <= 1.96 * error[i, 0]
        alone = np.sqrt(
            np.sum(np.var(draws[[0, 2]] / variance[[0, 2], None], axis=1, ddof=1)) / draws.shape[1]
        )
        unpaired += abs(log_ratio[2, 0] - exact["quarter"]) <= 1.96 * alone
    assert all(0.90 <= count / 200 <= 0.99 for count in inside.values()), inside
    assert unpaired > inside["quarter"]


def measure_squares(key, estimator, params, num_draws=600):
    result = _measure(
        key,
        params,
        (),
        BATCH,
        num_draws,
        estimator=estimator,
        shape=(1, num_draws),
        sharding=None,
        keep=True,
    )
    return result.squares[:, 0]


def test_ranks_of_equals_are_ties_except_by_chance():
    """Six estimators of one variance: a wrong rank anywhere in about 5 % of 300 comparisons; one
    that differs is found.
    """
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        squares = random.chisquare(4, size=(6, 400))
        wrong += np.any(ranks(*log_ratios(squares.mean(axis=1), squares)) > 1)
    assert wrong / 300 < 0.05 + 3.0 * (0.05 * 0.95 / 300) ** 0.5
    squares[3] *= 3.0
    assert ranks(*log_ratios(squares.mean(axis=1), squares))[3] == 6


def test_zero_variance_ranks_first_without_warnings():
    squares = np.stack([np.zeros(50), np.zeros(50), np.random.default_rng(0).chisquare(3, 50)])
    log_ratio, error = log_ratios(squares.mean(axis=1), squares)
    assert list(ranks(log_ratio, error)) == [1, 1, 3] and log_ratio[0, 1] == 0.0


def test_an_estimator_that_is_not_finite_ranks_last():
    def broken(key, *rest):
        result, state = HAND["one"].estimate(key, *rest)
        return result._replace(
            grads=jax.tree.map(lambda g: jnp.where(g > 0.9, jnp.nan, g), result.grads)
        ), state

    made = {
        "one": HAND["one"],
        "broken": HAND["one"]._replace(estimate=broken),
        "double": HAND["double"],
    }
    params = made["one"].init_params(jax.random.key(0))
    result = lab.compare(jax.random.key(1), made, params, BATCH, num_draws=100, rounds=0)
    assert list(result.rank) == [1, 3, 2] and np.isinf(result.variance[1])


@pytest.mark.filterwarnings("ignore::vijax.StepWarning")  # a table of bits, under relaxations too
@pytest.mark.parametrize("place", ["binary", "normal", "classes"])
def test_evaluations_are_those_of_the_metadata(place):
    """Counted in the traced program, for every rule that is legal here, against what the rule says
    of itself.
    """
    problem = getattr(problems, place)()
    batch, family, checked = problems.batch_of(problem, (0, 1, 2)), problem.guide.families["z"], 0
    support = family.traits.get(FiniteSupport)
    sizes = {
        "K": 2,
        "B": 1,
        "P": sum(leaf.size for leaf in jax.tree.leaves(lam_like(family))),
        "S": support.size if support else None,
    }
    sizes |= {"D": 3 if place == "binary" else 1, "C": 4 if place == "classes" else 2}
    for name, make in CATALOGUE.items():
        rule = make(family)
        try:
            made = vj.estimator(
                problem.model, problem.guide, rules=rule, num_samples=2, num_data=problems.N
            )
        except ValueError:
            continue
        # Two differentiate at a second set of traced evaluations, which the compiler merges; one
        # counts its derivatives too.
        if name.split("(")[0] in (
            "fitted_score_term",
            "generalized_doubly_reparameterized",
            "quadratic_control",
        ):
            continue
        formula = re.sub(r"(?<=[\w)])\s*(?=\()|(?<=[\d)])(?=[A-Z])", "*", rule.requires.evaluations)
        params = jax.eval_shape(made.init_params, jax.random.key(0))
        count = lab.evaluations(
            made, params, jax.eval_shape(made.init, jax.random.key(0), params), batch
        )
        assert count == problems.N * eval(formula, {}, sizes), (
            f"{name}: {count} against {problems.N} {formula}"
        )
        checked += 1
    assert checked >= 12


def test_equal_evaluations_are_counted_once_and_loops_by_their_length():
    mark = lambda value: jax.ad_checkpoint.checkpoint_name(value, "log_joint")  # noqa: E731

    def program(x):
        twice = mark(jnp.sin(x)) + mark(jnp.sin(x)) + mark(jnp.cos(x))
        return twice + jax.lax.scan(lambda c, _: (mark(c + 1.0), None), x, None, length=5)[0]

    assert cost._count(jax.make_jaxpr(program)(1.0).jaxpr) == 7
    assert cost._count(jax.make_jaxpr(jax.vmap(program))(jnp.ones(3)).jaxpr) == 21


def test_the_timed_loop_leaves_the_parameters():
    params = vj.Params((), {"a": jnp.ones(()), "b": jnp.full((), -2.0)}, ())
    after = cost._loop(jax.random.key(0), params, (), BATCH, 20, estimator=HAND["double"])
    jax.tree.map(np.testing.assert_array_equal, after, params)


SECONDS, EACH, START = 0.02, 8.6e-6, 4e-4  # of a round, a gradient, a loop's start


def stalling(seed, share):
    """(name, count) -> seconds on a fake clock: of all calls this share, the first among them,
    takes 50 ms longer, as where the machine does something else.
    """
    random, seen = np.random.default_rng(seed), []

    def run(name, count):
        seen.append(name)
        return START + EACH * count + 0.05 * bool(len(seen) == 1 or random.random() < share)

    return run


@pytest.mark.parametrize("seed", range(20))
def test_calibration_is_not_misled_by_slow_calls(seed):
    def run(count):
        return stalled("", count)

    stalled = stalling(seed, 0.1)
    assert 0.5 * SECONDS <= START + EACH * cost.calibrate(run, SECONDS) <= SECONDS + START
    # Planted: a loop count that rests on one slow call.
    stalled = stalling(seed, 0.1)
    assert cost.calibrate(run, SECONDS, calls=1) == 1


@pytest.mark.parametrize("seed", range(20))
def test_one_estimator_by_three_names_takes_one_time(seed):
    names = ("first", "second", "third")
    timing = cost.interleaved(names, stalling(seed, 0.1), rounds=11, seconds=SECONDS)
    assert timing.names == names and timing.rounds.shape == (11, 3)
    assert max(timing.microseconds) < 1.5 * min(timing.microseconds)
    np.testing.assert_allclose(timing.microseconds, 1e6 * EACH, rtol=0.1)


def drifting(seed):
    """(name, count) -> seconds on a fake clock of a machine whose speed wanders, slower by up to a
    half for seconds on end, and becomes slower throughout: a gradient takes the same whatever its
    name.
    """
    random = np.random.default_rng(seed)
    now, phase, period = 0.0, 6.3 * random.random(), 0.3 + 3.0 * random.random()

    def run(name, count):
        nonlocal now
        speed = 1.0 + 0.1 * now + 0.5 * (np.sin(phase + 6.3 * now / period) > 0.0)
        took = speed * (START + EACH * count) * (1.0 + 0.01 * random.exponential())
        now += took
        return took

    return run


def test_one_gradient_by_many_names_stays_within_its_own_interval():
    """Ratios to the first of six names, over 100 machines: outside their 95 % intervals in no more
    than 5 %; the intervals are no wider than 15 % in the median.
    """
    names, outside, widths = tuple("abcdef"), [], []
    for seed in range(100):
        timing = cost.interleaved(names, drifting(seed), rounds=11, seconds=SECONDS)
        ratio, low, high = (column[1:] for column in relative_times(timing, len(names)))
        assert np.all((low <= ratio) & (ratio <= high))
        outside.append(np.mean((low > 0.0) | (high < 0.0)))
        widths.append(np.median(high - low))
        assert np.max(timing.low) <= np.min(timing.high)  # the printed ones overlap, too
    # Machines are independent, names on one are not
    assert np.mean(outside) <= 0.05 + 3.0 * np.std(outside) / 10.0
    assert np.median(widths) < 0.15


def test_what_starting_a_loop_costs_is_no_part_of_a_gradient():
    """The first name is calibrated on a machine that is half as fast, so that its loops are
    shorter.
    """
    seen = []

    def run(name, count):
        seen.append(name)
        return (2.0 if set(seen) == {"a"} and len(seen) > 12 else 1.0) * (START + EACH * count)

    timing = cost.interleaved(("a", "b"), run, rounds=6, seconds=SECONDS)
    np.testing.assert_allclose(timing.microseconds, 1e6 * EACH, rtol=1e-6)
    with pytest.raises(ValueError, match="needs at least 6 rounds"):
        cost.interleaved(("a", "b"), run, rounds=5, seconds=SECONDS)


def test_intervals_between_rounds_cover_the_median_of_any_distribution():
    """95 % or somewhat more, for heavy tails as for uniform ones, at the least rounds and more."""
    random = np.random.default_rng(0)
    for draw, median in ((random.standard_cauchy, 0.0), (random.exponential, np.log(2.0))):
        for rounds in (cost.FEWEST, 11):
            _, low, high = cost.between_rounds(draw(size=(rounds, 4000)))
            covered = np.mean((low <= median) & (median <= high))
            assert covered > 0.95 - 5.0 * (0.05 * 0.95 / 4000) ** 0.5


def test_calibration_ends_for_slow_gradients_and_for_a_clock_that_stands_still():
    asked = []
    assert cost.calibrate(lambda count: asked.append(count) or 5.0 * count, SECONDS) == 1
    assert len(asked) == 5
    assert cost.calibrate(lambda count: 0.0, SECONDS) == cost.MOST


def test_slopes_of_a_power_law(comparison):
    """snr = 3 K^-1/2 with errors of 1 %: the interval holds -1/2 in 90 to 99 % of 300 noisy sweeps;
    a straight line fits.
    """
    random, values = np.random.default_rng(1), np.array([2.0, 8.0, 32.0, 128.0])
    exact = 3.0 * values**-0.5
    one = jax.tree.map(lambda column: np.repeat(column[:1], 4), comparison)._replace(
        at=values, snr_error=0.01 * exact
    )
    inside = 0
    for _ in range(300):
        found = lab.slopes(one._replace(snr=exact * (1.0 + 0.01 * random.normal(size=4))))
        inside += (found.low[0] <= -0.5 <= found.high[0]).item()
    assert 0.90 <= inside / 300 <= 0.99
    bent = lab.slopes(one._replace(snr=exact * (1.0 + 0.1 * np.array([1.0, -1.0, -1.0, 1.0]))))
    # Widened where a line does not fit
    assert bent.misfit[0] > 20.0 and bent.high[0] - bent.low[0] > 0.05
    lost = lab.slopes(one._replace(snr=exact * np.array([1.0, 1.0, 1.0, 0.0])))
    assert lost.points[0] == 3 and np.isfinite(lost.slope[0])


def test_sweep_and_along_say_where_they_were():
    params = HAND["one"].init_params(jax.random.key(0))
    path = {0: params, 10: params._replace(phi={"a": jnp.ones(()), "b": jnp.ones(())})}
    two = {name: HAND[name] for name in ("one", "double")}
    along = lab.along(jax.random.key(1), two, path, BATCH, num_draws=50)
    assert list(along.at) == [0, 0, 10, 10] and list(along.estimator) == ["one", "double"] * 2
    with pytest.raises(ValueError, match="learned or reference also has"):
        lab.along(jax.random.key(1), two, path, BATCH, num_draws=50, reference={3: None})
    with pytest.raises(ValueError, match="learned has"):
        lab.compare(
            jax.random.key(1),
            two,
            params,
            BATCH,
            num_draws=50,
            learned={"typo": lab.Learned((), ())},
        )
    timed = lab.along(jax.random.key(1), two, path, BATCH, num_draws=50, rounds=6)
    assert np.all(np.isfinite(timed.efficiency_high)) and np.all(
        timed.microseconds[:2] == timed.microseconds[2:]
    )
    swept = lab.sweep(
        jax.random.key(1),
        (1, 4),
        lambda k: lab.Point({"scaled": noisy(k)}, params, BATCH),
        num_draws=500,
    )
    slope = lab.slopes(swept, "variance")
    assert abs(slope.slope[0] - 2.0) < 5.0 * (slope.high[0] - slope.low[0]) / (2.0 * 1.96)
    table = lab.to_dataframe(swept)
    assert len(table) == 2 and list(table.columns) == list(lab.Comparison._fields)


def test_learned_brings_control_and_state_up():
    """A running mean finds the mean of the integrand, and the variance with it is lower than
    without.
    """
    problem = problems.binary()
    batch = problems.batch_of(problem, (0, 1, 2))
    made = vj.estimator(
        problem.model,
        problem.guide,
        rules=score(vj.baselines.moving_average(0.9)),
        num_data=problems.N,
    )
    params = made.init_params(jax.random.key(0))
    params = params._replace(theta=jax.tree.map(lambda leaf: leaf + 20.0, params.theta))
    learned = lab.learn(jax.random.key(1), made, params, batch, num_steps=100)
    by = {"fresh": made, "learned": made}
    result = lab.compare(
        jax.random.key(2), by, params, batch, num_draws=500, learned={"learned": learned}, rounds=0
    )
    phi = result.block == "phi"
    assert result.ratio_high[phi][1] < 0.5 and list(result.rank[phi]) == [2, 1]
    assert np.all(result.ratio[~phi] == 1.0)  # theta does not see the baseline


@pytest.mark.parametrize("place", ["binary", "classes", "regression", "global_bits"])
def test_the_gradient_in_lam_obeys_the_chain_rule(place):
    """phi's gradient is the pull-back of lam's through the guide, draw by draw; theta's and the
    loss are the same.
    """
    problem = getattr(problems, place)()
    rules = score(vj.baselines.none())
    if set(problem.guide.families) == {"w", "z"}:
        rules = {"w": score(vj.baselines.none()), "z": pathwise()}
    made = vj.estimator(
        problem.model, problem.guide, rules=rules, num_samples=1, num_data=problems.N
    )
    params = made.init_params(jax.random.key(0))
    params = params._replace(phi=problems.generic(params.phi))
    state, batch = made.init(jax.random.key(0), params), problems.batch_of(problem)

    def locate(phi):
        return vj.in_lam(made, params._replace(phi=phi), batch)

    @jax.jit
    def run(key):
        ours = made.estimate(key, params, state, batch)[0]
        theirs = made.estimate(key, locate(params.phi), state, batch)[0]
        _, pull = jax.vjp(lambda phi: locate(phi).phi, params.phi)
        pulled = theirs.grads._replace(phi=pull(theirs.grads.phi)[0])
        return (ours.loss, ours.grads), (theirs.loss, pulled)

    assert_close(*run(jax.random.key(3)), tolerance=1e-5)


def test_what_cannot_be_located_is_refused():
    params = HAND["one"].init_params(jax.random.key(0))
    with pytest.raises(ValueError, match="does not say where q's parameters are"):
        vj.in_lam(HAND["one"], params, BATCH)


def test_comparisons_in_lam():
    """The same estimator objects, `split` among them, at phi and along a path of lam: theta's
    figures agree, phi's are those of lam.
    """
    problem = problems.binary()
    batch = problems.batch_of(problem, (0, 1, 2))
    one, other = (
        vj.estimator(problem.model, problem.guide, rules=score(baseline), num_data=problems.N)
        for baseline in (vj.baselines.none(), vj.baselines.moving_average())
    )
    made = {"average": other, "split": vj.split(theta=other, phi=one)}
    params = one.init_params(jax.random.key(0))
    params = params._replace(phi=problems.generic(params.phi))
    lam = vj.in_lam(one, params, batch)
    learned = {"average": lab.learn(jax.random.key(1), other, lam, batch, num_steps=20)}
    key, num_draws = jax.random.key(2), 200
    located = lab.along(key, made, {0: lam}, batch, num_draws=num_draws, learned={0: learned})
    stored = lab.compare(
        jax.random.fold_in(key, 0),
        made,
        params,
        batch,
        num_draws=num_draws,
        learned=learned,
        rounds=0,
    )
    np.testing.assert_array_equal(stored.block, ["theta", "theta", "phi", "phi"])
    np.testing.assert_array_equal(located.block, stored.block)
    np.testing.assert_allclose(located.variance[:2], stored.variance[:2], rtol=1e-4)
    assert np.all(located.variance[2:] > 0.0)
    assert np.all(located.variance[2:] != stored.variance[2:])
    # The timed loop takes such parameters and leaves their form.
    place, state = lam._replace(control=learned["average"].control), learned["average"].state
    after = jax.eval_shape(lambda p: cost._loop(key, p, state, batch, 1, estimator=other), place)
    assert jax.tree.structure(after) == jax.tree.structure(place)


def test_sources_of_variance_add_up_and_are_those_of_the_closed_form():
    """Conjugate normal with one datum a step: Var given the datum, and the variance of the exact
    gradients over the data.
    """
    problem = problems.normal()
    made = vj.estimator(problem.model, problem.guide, rules=pathwise(), num_data=problems.N)
    params = made.init_params(jax.random.key(0))
    params = params._replace(phi=problems.generic(params.phi))
    x = jnp.asarray(problem.x, jnp.float32)
    found = lab.variance_sources(
        jax.random.key(1), made, params, {"z": ()}, x, batch_size=1, num_batches=4000, num_draws=3
    )
    row = found.block.index("theta/bias")
    # bias: dlog p(x | z) / dbias = (x - w z - b) / 0.49, times N = 3; z ~ N(m_i, s_i^2), weight w =
    # 1, bias b = 0.
    lam = params.phi["z"]
    loc, scale = lam["loc"][:, 0], jnp.exp(lam["log_scale"][:, 0])
    within = 9.0 * float(jnp.mean(scale**2)) / 0.49**2
    between = 9.0 * float(jnp.var((x - loc) / 0.49))
    assert abs(found.latents[row] - within) < 5.0 * found.latents_error[row]
    assert abs(found.minibatches[row] - between) < 5.0 * found.minibatches_error[row]
    whole = lab.variance_sources(
        jax.random.key(1), made, params, {"z": ()}, x, batch_size=3, num_batches=200, num_draws=3
    )
    assert abs(whole.minibatches[row]) < 5.0 * whole.minibatches_error[row]
    # A table's rows are q's own parameters already.
    place = vj.in_lam(made, params, vj.Batch(x, jnp.arange(problems.N)))
    given = {"batch_size": 1, "num_batches": 20}
    by_row, by_lam = (
        lab.variance_sources(jax.random.key(1), made, p, {"z": ()}, x, **given)
        for p in (params, place)
    )
    assert by_row.block == by_lam.block and "phi/z/loc" in by_lam.block
    assert_close(by_row[1:], by_lam[1:], tolerance=1e-5)
    with pytest.raises(ValueError, match="q's own parameters of .1. data"):
        short = vj.in_lam(made, params, vj.Batch(x[:1], jnp.arange(1)))
        lab.variance_sources(jax.random.key(1), made, short, {"z": ()}, x, **given)
    with pytest.raises(ValueError, match="pass all of its data"):
        lab.variance_sources(
            jax.random.key(1), made, params, {"z": ()}, x[:2], batch_size=1, num_batches=10
        )
    with pytest.raises(ValueError, match="both must be at least 2"):
        lab.variance_sources(
            jax.random.key(1), made, params, {"z": ()}, x, batch_size=1, num_batches=10, num_draws=1
        )


def test_sticking_the_landing_is_better_only_for_wide_q():
    """Identity 7: Var_m of the path derivative is below the total one iff s^2 > S^2 / 2; ranks say
    so at both sides.
    """
    family = vj.families.diag_normal(1)
    model = vj.models.latent_model(
        lambda key: (), lambda theta, z, x: jnp.sum(vj.densities.standard_normal(z))
    )
    guide = vj.guides.per_datapoint(family, 1)
    made = {
        name: vj.estimator(model, guide, rules=rule, num_data=1)
        for name, rule in (
            ("total", pathwise()),
            ("path", doubly_reparameterized()),
            ("entropy", closed_form_entropy(pathwise())),
        )
    }
    params = made["total"].init_params(jax.random.key(0))
    for variance, best in ((0.3, "total"), (0.8, "path")):
        phi = {
            "z": {
                "loc": jnp.full((1, 1), 0.4),
                "log_scale": jnp.full((1, 1), 0.5 * np.log(variance)),
            }
        }
        moments = {
            name: measure(
                jax.random.key(2), one, params._replace(phi=phi), {"z": ()}, BATCH, num_draws=4000
            )
            for name, one in made.items()
        }
        exact = {
            "total": variance,
            "path": (variance**-0.5 - variance**0.5) ** 2,
            "entropy": variance,
        }
        seen = {name: float(m.variance[0]) for name, m in moments.items()}
        assert min(("total", "path"), key=seen.__getitem__) == best
        for name, value in exact.items():
            assert abs(seen[name] / value - 1.0) < 5.0 * (2.0 / 4000) ** 0.5  # normal draws
