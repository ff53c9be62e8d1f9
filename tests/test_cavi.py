"""Coordinate ascent and stochastic VI of conjugate models: against natural gradients of a bound
written by hand, fixed points that are known, and the evidence summed over every assignment.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased
from registry import MODELS
from scipy import special, stats

import vijax as vj
from vijax import families, guides, models
from vijax.algorithms import cavi, natural_gradient
from vijax.models.bayesian_gaussian_mixture import assignments

pytestmark = pytest.mark.usefixtures("x64")

N, C, KEY = 10, 3, jax.random.key(7)
SETTINGS = {"concentration": 1.5, "prior_scale": 2.0, "noise_scale": 0.6}
MODEL = models.bayesian_gaussian_mixture(C, 2, **SETTINGS)
FAMILY = families.product(weights=families.dirichlet(C), loc=families.diag_normal((C, 2)))
CLASSES = families.categorical(C)
GUIDE = guides.hierarchical(w=guides.shared(FAMILY), z=guides.per_datapoint(CLASSES, N))


def data():
    rng = np.random.default_rng(3)
    centres = np.array([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.5]])
    return jnp.asarray(centres[np.arange(N) % 3] + 0.6 * rng.normal(size=(N, 2)))


def start(guide=GUIDE):
    """q(w) around three data; rows away from any special point."""
    phi = guide.init(jax.random.key(1))
    phi["w"]["loc"] = {"loc": data()[:3], "log_scale": jnp.full((C, 2), -0.3)}
    phi["w"]["weights"] = {"log_concentration": jnp.array([0.3, 1.0, -0.2])}
    if guide.num_data is not None:
        phi["z"] = {"logits": jnp.asarray(np.random.default_rng(0).normal(size=(N, C)))}
    return vj.Params((), phi, ())


def elbo(lam, rows, x, scale):
    """The bound by hand: expectations under the Dirichlet, the normals and the responsibilities."""
    counts = jnp.exp(lam["weights"]["log_concentration"])
    share = jax.nn.softmax(rows["logits"], axis=1)
    digamma = jax.scipy.special.digamma
    log_weights = digamma(counts) - digamma(counts.sum())
    square = jnp.square(x[:, None, :] - lam["loc"]["loc"][None]).sum(axis=2)
    square = square + jnp.exp(2.0 * lam["loc"]["log_scale"]).sum(axis=1)[None]
    fit = -0.5 * square / 0.36 - jnp.log(2.0 * jnp.pi * 0.36)
    local = (share * (log_weights[None] + fit - jax.nn.log_softmax(rows["logits"], axis=1))).sum()
    before = {
        "weights": {"log_concentration": jnp.full(C, jnp.log(1.5))},
        "loc": {"loc": jnp.zeros((C, 2)), "log_scale": jnp.full((C, 2), jnp.log(2.0))},
    }
    return scale * local - families.need(FAMILY, families.Kl).value(lam, before)


@functools.cache
def exact_estimator():
    """Its gradient, without noise, for `natural_gradient`."""

    def estimate(key, params, state, batch):
        phi, scale = params.phi.phi, N / batch.index.shape[0]
        loss, grads = jax.value_and_grad(lambda p: -elbo(p["w"], p["z"], batch.x, scale))(phi)
        return vj.Estimate(loss, params._replace(phi=vj.rows.Rows(grads)), ()), state

    return vj.estimator_from(
        estimate,
        lambda key: start(),
        num_data=N,
        is_table=lambda params: params._replace(phi=GUIDE.is_table(params.phi)),
    )


@functools.cache
def program(algorithm):
    return jax.jit(algorithm.step)


def steps(algorithm, params, batches, *, clock=0):
    """The params after every step, and its loss."""
    state, found, step = algorithm.init(KEY, params), [], program(algorithm)
    state = state._replace(clock=jnp.asarray(clock, jnp.int32))
    for number, index in enumerate(batches):
        batch = vj.Batch(data()[index], jnp.asarray(index))
        state, info = step(jax.random.fold_in(KEY, number), state, batch)
        assert info.finite
        found.append((algorithm.params(state), float(info.loss)))
    return found


ALL = np.arange(N)


@functools.cache
def converged():
    """(params, [T] losses) after CAVI on all data."""
    fitted = vj.fit(KEY, cavi(MODEL, GUIDE, num_data=N), start(), data(), num_steps=400)
    return fitted.params, fitted.history.loss


def assert_close(one, other, atol=1e-10):
    for mine, known in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(mine, known, rtol=0, atol=atol)


def test_a_sweep_is_a_natural_gradient_step_of_rate_one_in_each_half():
    """Rows given q(w), then q(w) given the rows; both at once end elsewhere."""
    natural = natural_gradient(exact_estimator(), GUIDE, 1.0)
    both = [start(), start()]
    for _ in range(3):
        params, swept = both
        (rows, loss), *_ = steps(natural, params, [ALL])
        half = params._replace(phi={"w": params.phi["w"], "z": rows.phi["z"]})
        (after, _), *_ = steps(natural, half, [ALL])
        stepped = half._replace(phi={"w": after.phi["w"], "z": rows.phi["z"]})
        (swept, mine), *_ = steps(cavi(MODEL, GUIDE, num_data=N), swept, [ALL])
        assert_close(swept.phi["w"], stepped.phi["w"])
        share = [jax.nn.softmax(one.phi["z"]["logits"]) for one in (swept, stepped)]
        assert_close(*share)
        bound = elbo(params.phi["w"], half.phi["z"], data(), 1.0)
        assert abs(mine + bound) < 1e-10 and mine < loss
        at_once, own = (one.phi["w"]["loc"]["loc"] for one in (rows, swept))
        assert not np.allclose(at_once, own, atol=1e-3)
        both = [stepped, swept]


def test_stochastic_vi_moves_the_natural_parameters_by_its_rate():
    """Minibatches, a schedule: q(w) as by natural gradients, from the first step on; of one rate
    and the full data set it is CAVI.
    """
    rate = lambda t: (t + 2.0) ** -0.7  # noqa: E731
    order = np.random.default_rng(5).permutation(N)
    batches = [order[:4], order[4:8], order[[8, 9, 0, 1]]]
    mine = steps(cavi(MODEL, GUIDE, num_data=N, rate=rate), start(), batches)
    whole, part = (natural_gradient(exact_estimator(), GUIDE, size) for size in (1.0, rate))
    params = start()
    for number, (index, (found, _)) in enumerate(zip(batches, mine, strict=True)):
        rows = steps(whole, params, [index])[0][0].phi["z"]
        half = params._replace(phi={"w": params.phi["w"], "z": rows})
        moved = steps(part, half, [index], clock=number)[0][0].phi["w"]
        params = params._replace(phi={"w": moved, "z": rows})
        assert_close(found.phi["w"], params.phi["w"])
    full = steps(cavi(MODEL, GUIDE, num_data=N, rate=1.0), start(), [ALL] * 3)
    exact = steps(cavi(MODEL, GUIDE, num_data=N), start(), [ALL] * 3)
    for (one, loss), (other, known) in zip(full, exact, strict=True):
        assert_close(one.phi, other.phi, 1e-12)
        assert abs(loss - known) < 1e-10


def test_stochastic_vi_needs_no_table():
    one = guides.amortized(CLASSES, (CLASSES.init, lambda phi, x: phi))
    bare = guides.hierarchical(w=guides.shared(FAMILY), z=one)
    batches = np.arange(N).reshape(2, 5)
    free = steps(cavi(MODEL, bare, num_data=N, rate=0.5), start(bare), batches)
    kept = steps(cavi(MODEL, GUIDE, num_data=N, rate=0.5), start(), batches)
    assert_close(free[-1][0].phi["w"], kept[-1][0].phi["w"], 1e-12)
    with pytest.raises(ValueError, match="cavi without a rate.*per_datapoint"):
        cavi(MODEL, bare, num_data=N)


def test_the_bound_never_falls_and_stays_below_the_evidence():
    params, loss = converged()
    losses = [loss for _, loss in steps(cavi(MODEL, GUIDE, num_data=N), start(), [ALL] * 30)]
    assert np.all(np.diff(losses) < 1e-10) and losses[0] - losses[-1] > 1.0
    evidence = float(jax.jit(MODEL.log_evidence)((), data()))
    gap = evidence + loss[-1]
    # Three far components: q is around one of 3! labellings.
    assert np.log(6.0) - 0.1 < gap < np.log(6.0) + 1.5
    assert abs(loss[-1] + elbo(params.phi["w"], params.phi["z"], data(), 1.0)) < 1e-10


def test_the_fixed_point_has_no_slope():
    """Of the bound by hand, exactly; of an estimator of the same model by draws of w."""
    params, _ = converged()
    slope = jax.grad(elbo, argnums=(0, 1))
    at = jax.jit(slope)(params.phi["w"], params.phi["z"], data(), 1.0)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(at)) < 1e-9
    rules = {"w": vj.rules.pathwise(), "z": vj.rules.enumerated()}
    est = vj.estimator(MODEL, GUIDE, rules=rules, num_data=N)
    whole = est.init_params(KEY)._replace(phi=params.phi)
    draw = jax.jit(
        jax.vmap(
            lambda key, phi: est.estimate(
                key, whole._replace(phi=phi), est.init(key, whole), vj.Batch(data(), jnp.arange(N))
            )[0],
            in_axes=(0, None),
        )
    )
    keys = jax.random.split(jax.random.key(3), 1500)
    seen = draw(keys, params.phi)
    assert_unbiased(seen.grads.phi, jax.tree.map(np.zeros_like, params.phi))
    assert_unbiased(-seen.loss, elbo(params.phi["w"], params.phi["z"], data(), 1.0))
    moved = jax.tree.map(lambda leaf: leaf + 0.05, params.phi["w"])
    other = draw(keys, params.phi | {"w": moved}).grads.phi
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(other, jax.tree.map(np.zeros_like, params.phi))


def test_incremental_cavi_never_lowers_the_bound_once_all_were_seen():
    orders = [np.random.default_rng(seed).permutation(N) for seed in range(30)]
    batches = np.concatenate(orders).reshape(-1, 2)
    found = steps(cavi(MODEL, GUIDE, num_data=N), start(), batches)
    bound = jax.jit(lambda phi: elbo(phi["w"], phi["z"], data(), 1.0))
    bounds = np.array([float(bound(params.phi)) for params, _ in found])
    assert np.all(np.diff(bounds[N // 2 :]) > -1e-10), "the bound on all data fell"
    assert abs(bounds[-1] + converged()[1][-1]) < 1e-6


def test_cavi_of_the_hierarchical_normal_is_the_best_mean_field():
    """Exact means, and variances that are the inverses of the joint precision's diagonal."""
    x, theta = np.random.default_rng(4).normal(size=(4, 1)) + 1.0, {"log_scale": jnp.array([0.2])}
    model = models.hierarchical_normal(1, prior_scale=2.0, noise_scale=0.8)
    one = families.diag_normal(1)
    guide = guides.hierarchical(w=guides.shared(one), z=guides.per_datapoint(one, 4))
    params = vj.Params(theta, guide.init(KEY), ())
    fitted = vj.fit(KEY, cavi(model, guide, num_data=4), params, x, num_steps=300)
    exact, between = model.posterior(theta, jnp.asarray(x)), np.exp(-0.4)
    for name in ("w", "z"):
        np.testing.assert_allclose(fitted.params.phi[name]["loc"], exact[name]["loc"], atol=1e-10)
    variance = jax.tree.map(
        lambda lam: np.exp(2.0 * lam["log_scale"]),
        fitted.params.phi,
        is_leaf=lambda lam: "loc" in lam,
    )
    np.testing.assert_allclose(variance["w"], 1.0 / (0.25 + 4.0 * between), rtol=1e-12)
    np.testing.assert_allclose(variance["z"], 1.0 / (between + 0.8**-2), rtol=1e-12)
    assert np.all(np.diff(fitted.history.loss) < 1e-10)
    assert model.log_evidence(theta, jnp.asarray(x)) + fitted.history.loss[-1] > 0.0


CONJUGATE = {
    "bayesian_gaussian_mixture": (MODEL, (), FAMILY, CLASSES),
    "hierarchical_normal": (
        MODELS["hierarchical_normal"].model,
        jax.tree.map(np.asarray, MODELS["hierarchical_normal"].theta),
        families.diag_normal(2),
        families.diag_normal(2),
    ),
}


@pytest.mark.parametrize("name", CONJUGATE)
def test_conditionals_are_those_of_the_log_joint(name):
    """`implied` inverts `update`; the bound is that of draws of w and z; local and update are where
    its slope is zero.
    """
    model, theta, of_w, of_z = CONJUGATE[name]
    known = model.traits.get(models.Conditionals)
    shaken = lambda seed, lam: jax.tree.map(  # noqa: E731
        lambda leaf: leaf + 0.3 * np.random.default_rng(seed).normal(size=leaf.shape), lam
    )
    lam, own = shaken(0, of_w.init(KEY)), shaken(1, of_z.init(KEY))
    again = jax.jit(lambda lam: known.update(theta, lam, known.implied(theta, lam, 7), 7))(lam)
    assert_close(again, lam, 1e-12)
    x = jnp.array([0.4, -1.1])

    def draw(key):
        key_w, key_z = jax.random.split(key)
        w, z = families.sample(key_w, of_w, lam), families.sample(key_z, of_z, own)
        return model.log_local(theta, w, z, x) - of_z.log_prob(own, z)

    value = jax.jit(lambda lam, own: known.bound(theta, lam, vj.Q(of_z, own), x))
    draws = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 20_000))
    assert_unbiased(draws, value(lam, own))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(draws, value(lam, own) + 0.3)
    best = known.local(theta, lam, x)
    assert_close(jax.jit(jax.grad(value, 1))(lam, best), jax.tree.map(np.zeros_like, best))

    def whole(lam):
        less = families.need(of_w, families.Kl).value(lam, model.priors["w"].locate(theta))
        return 5.0 * value(lam, own) - less

    swept = known.update(theta, lam, known.statistics(vj.Q(of_z, own), x), 5)
    assert_close(jax.jit(jax.grad(whole))(swept), jax.tree.map(np.zeros_like, swept))


def test_every_model_with_conditionals_is_looked_at():
    stated = {n for n in MODELS if MODELS[n].model.traits.get(models.Conditionals)}
    assert stated == set(CONJUGATE)


def subsets_log_evidence(x):
    """By another road: the N x N covariance of every subset of data that shares a component."""
    num_data = len(x)
    marginal = np.zeros(2**num_data)
    for code in range(1, 2**num_data):
        part = x[[i for i in range(num_data) if code >> i & 1]]
        covariance = 0.36 * np.eye(len(part)) + 4.0 * np.ones((len(part), len(part)))
        normal = stats.multivariate_normal(np.zeros(len(part)), covariance)
        marginal[code] = np.sum(normal.logpdf(part.T))
    terms, places = [], 2 ** np.arange(num_data)
    for classes in itertools.product(range(C), repeat=num_data):
        member = np.array(classes)[None, :] == np.arange(C)[:, None]
        counts = 1.5 + member.sum(axis=1)
        labels = special.gammaln(counts).sum() - special.gammaln(counts.sum())
        terms.append(labels + marginal[member @ places].sum())
    before = C * special.gammaln(1.5) - special.gammaln(C * 1.5)
    return special.logsumexp(terms) - before


def test_the_evidence_is_the_sum_over_assignments():
    few = np.asarray(data())[:6]
    exact = subsets_log_evidence(few)
    assert abs(float(MODEL.log_evidence((), jnp.asarray(few))) - exact) < 1e-10
    assert assignments(3, 2).shape == (9, 2, 3)
    assert len(np.unique(np.asarray(assignments(3, 4)).reshape(81, -1), axis=0)) == 81
    with pytest.raises(ValueError, match=r"3\^11 = 1.77e\+05 assignments of 11 data"):
        MODEL.log_evidence((), jnp.zeros((11, 2)))


def test_a_natural_step_of_large_concentrations_keeps_its_digits():
    """Float32 and thousands of data: towards the target, as float64 does."""
    step = families.need(families.dirichlet(3), families.Natural).step
    kl = families.need(families.dirichlet(3), families.Kl).value
    for size, tolerance in ((1.0, 1e-5), (1e3, 3e-4)):
        at = {"log_concentration": jnp.log(size * jnp.array([0.7, 2.0, 1.1], jnp.float32))}
        to = {"log_concentration": jnp.log(size * jnp.array([0.8, 2.1, 1.0], jnp.float32))}
        slope = jax.tree.map(jnp.negative, jax.grad(kl)(at, to))
        moved = step(at, slope, jnp.float32(1.0))["log_concentration"]
        assert moved.dtype == jnp.float32
        np.testing.assert_allclose(moved, to["log_concentration"], atol=tolerance)


MEAN_FIELD = guides.shared(families.product(weights=families.beta(C), loc=families.diag_normal(C)))
REFUSED = {
    "no conditionals": (
        lambda: cavi(MODELS["gaussian_mixture"].model, GUIDE, num_data=N),
        "complete conditionals are not known.*natural_gradient",
    ),
    "another family": (
        lambda: cavi(
            MODEL, guides.hierarchical(w=MEAN_FIELD, z=guides.per_datapoint(CLASSES, N)), num_data=N
        ),
        r"the best q\(w\) is of the prior's family",
    ),
    "one latent": (
        lambda: cavi(MODEL, guides.per_datapoint(CLASSES, N), num_data=N),
        "guides.hierarchical",
    ),
    "rows of another size": (
        lambda: cavi(MODEL, GUIDE, num_data=N + 1),
        "table has 10 rows, but num_data=11",
    ),
    "a rate of nothing": (
        lambda: cavi(MODEL, GUIDE, num_data=N, rate=0.0),
        r"cavi\(rate=0.0\).*\(0, 1\]",
    ),
    "concentration": (
        lambda: models.bayesian_gaussian_mixture(3, 2, concentration=0.0),
        "concentration=0.0.*must be positive",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build()
