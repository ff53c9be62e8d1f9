"""What a rule is given is looked at: integrands that its derivation does not cover, objectives with
kinks or jumps, log-densities with steps or without the datum.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import compiled

import vijax as vj
from vijax import families, guides, models, objectives, path_weights, rules
from vijax.dependence import depends, has_constant_slope, trace, ways
from vijax.roughness import _roughness
from vijax.types import Objective

Q = families.diag_normal(1)
LAM = {"loc": jnp.array([0.3]), "log_scale": jnp.array([-0.4])}
SCORES = {
    "score": rules.score(),
    "measure_valued": rules.measure_valued(),
    "quadratic_control": rules.quadratic_control(),
    "fitted_score_term": rules.fitted_score_term(),
    "doubly_reparameterized": rules.doubly_reparameterized(),
    "lax": rules.lax((lambda key: jnp.zeros(()), lambda phi, z: phi + z[0])),
    "closed_form_entropy": rules.closed_form_entropy(rules.pathwise()),
}


def log_p(z):
    return jnp.sum(-0.5 * (z - 1.0) ** 2)


def log_w(s):
    return log_p(s.z) - s.log_q


INTEGRANDS = {
    "exp": lambda s: -0.5 * jnp.exp(2.0 * log_w(s)),
    "square": lambda s: log_w(s) ** 2,
    "relu": lambda s: jax.nn.relu(log_w(s)),
    "times z": lambda s: s.z[0] * s.log_q,
    "where": lambda s: jnp.where(s.z[0] > 0.0, log_w(s), 0.0),
}
EXP = INTEGRANDS["exp"]


def exact(lam, integrand):
    """E_q[integrand] by the trapezoidal rule on 4,001 points over 8 standard deviations."""
    points = jnp.linspace(-8.0, 8.0, 4001)
    scale = jnp.exp(lam["log_scale"][0])
    z = jax.lax.stop_gradient(lam["loc"][0] + scale * points)[:, None]
    log_q = jax.vmap(Q.log_prob, in_axes=(None, 0))(lam, z)
    values = jax.vmap(lambda z, at: integrand(vj.Sample(z, at, jax.random.key(0))))(z, log_q)
    width = jax.lax.stop_gradient(scale) * (points[1] - points[0])
    return jnp.sum(jnp.exp(log_q) * values) * width


def mean_gradient(integrand, rule, objective, num_samples, *, lam=LAM, num_draws=20_000):
    """(mean, standard error) of d/dlam, [2] each."""

    def value(lam, key):
        setting = dict(control=rule.init(jax.random.key(9)), state=rule.init_state())
        return vj.expect(
            key,
            Q,
            lam,
            integrand,
            rule=rule,
            objective=objective,
            num_samples=num_samples,
            **setting,
        )[0]

    keys = jax.random.split(jax.random.key(2), num_draws)
    draws = compiled(jax.vmap(jax.grad(value), in_axes=(None, 0)), lam, keys)
    draws = np.concatenate([draws["loc"], draws["log_scale"]], axis=1).astype(float)
    return draws.mean(axis=0), draws.std(axis=0) / num_draws**0.5


@pytest.mark.parametrize("integrand", INTEGRANDS)
@pytest.mark.parametrize("name", SCORES)
def test_an_integrand_that_is_not_affine_in_log_q_is_refused(name, integrand):
    with pytest.raises(ValueError, match="affine in sample.log_q.*objective=lambda log_w"):
        vj.expect(
            jax.random.key(0), Q, LAM, INTEGRANDS[integrand], rule=SCORES[name], num_samples=2
        )


@pytest.mark.parametrize("slope", [-0.5, 0.0])
@pytest.mark.parametrize("name", SCORES)
def test_an_affine_one_of_any_slope_is_right(name, slope):
    """Against quadrature; the answer at slope -1 must be far away."""

    def integrand(s, slope=slope):
        return log_p(s.z) + slope * s.log_q

    def answer(integrand):
        exactly = jax.grad(exact)(LAM, integrand)
        return np.array([exactly["loc"][0], exactly["log_scale"][0]])

    rule = SCORES[name]
    mean, error = mean_gradient(integrand, rule, objectives.elbo, 2, num_draws=8000)
    rounding = 1e-4  # an exact rule has no error of its own, the quadrature this one in float32
    assert np.all(np.abs(mean - answer(integrand)) < 5.0 * error + rounding)
    other = answer(functools.partial(integrand, slope=-1.0))
    assert np.any(np.abs(mean - other) > 5.0 * error + rounding)


def test_pathwise_is_right_on_it_and_the_advice_is_right_for_the_score():
    """The exact gradient by quadrature; the sign that the score once had is 20 errors away. q is
    wider than p, or the weights' squares would have no variance.
    """
    lam = {"loc": jnp.array([0.3]), "log_scale": jnp.array([0.3])}
    answer = jax.grad(exact)(lam, EXP)
    answer = np.array([answer["loc"][0], answer["log_scale"][0]])
    as_objective = Objective("mine", lambda w: -0.5 * jnp.mean(jnp.exp(2.0 * w)))
    for given in (
        (EXP, rules.pathwise(), objectives.elbo, 2),
        (log_w, rules.score(), as_objective, 2),
        (log_w, rules.doubly_reparameterized(), as_objective, 2),
    ):
        mean, error = mean_gradient(*given, lam=lam)
        assert np.all(np.abs(mean - answer) < 5.0 * error), given[1].name
        assert np.any(np.abs(mean + answer) > 20.0 * error), given[1].name


@pytest.mark.parametrize("slope", [-0.5, 0.0, -2.0])
def test_doubly_reparameterized_is_unbiased_for_every_slope(slope):
    """Against pathwise, which takes any; the former factor, right for -1 alone, must be caught."""

    def integrand(s):
        return log_p(s.z) + slope * s.log_q

    truth, error = mean_gradient(integrand, rules.pathwise(), objectives.iwae, 3)
    mean, own_error = mean_gradient(integrand, rules.doubly_reparameterized(), objectives.iwae, 3)
    both = np.hypot(error, own_error)
    assert np.all(np.abs(mean - truth) < 5.0 * both)

    wrong = path_weights.exact()._replace(
        factor=lambda objective, w, slope: path_weights.exact().factor(objective, w, -1.0)
    )
    planted, own_error = mean_gradient(
        integrand, rules.doubly_reparameterized(wrong), objectives.iwae, 3
    )
    assert np.any(np.abs(planted - truth) > 8.0 * np.hypot(error, own_error))


KINKED = {
    "max": jnp.max,
    "median": jnp.median,
    "clipped weights": lambda w: jnp.log(jnp.mean(jnp.minimum(jnp.exp(w), 3.0))),
    "mean relu": lambda w: jnp.mean(jax.nn.relu(w)),
    "rank weights": lambda w: jnp.mean(jnp.sort(w) * jnp.arange(1.0, 1.0 + w.shape[0])),
}
STEPPED = {
    "fraction above": lambda w: jnp.mean(w > 0.5),
    "rounded": lambda w: jnp.mean(jnp.round(w)),
    "a jump": lambda w: jnp.mean(jnp.where(w > 1.0, w + 1.0, w)),
}
SMOOTH = {
    "iwae": objectives.iwae.value,
    "renyi(0.5)": objectives.renyi(0.5).value,
    "renyi(-2)": objectives.renyi(-2.0).value,
    "renyi(4)": objectives.renyi(4.0).value,
    "cubo": objectives.cubo().value,
    "jackknife": objectives.jackknife().value,
    "thermodynamic": objectives.thermodynamic((0.0, 0.1, 0.5, 1.0)).value,
    "mean and variance": lambda w: jnp.mean(w) - 0.1 * jnp.var(w),
    "softplus": lambda w: jnp.mean(jax.nn.softplus(w)),
}


@pytest.mark.parametrize("name", KINKED | STEPPED | SMOOTH)
def test_what_jumps_is_found(name):
    expected = "kinks" if name in KINKED else "steps" if name in STEPPED else ""
    assert _roughness((KINKED | STEPPED | SMOOTH)[name], 3) == expected


@pytest.mark.parametrize(
    "rule", [rules.doubly_reparameterized(), rules.doubly_reparameterized(path_weights.wake())]
)
def test_a_kinked_objective_is_refused_where_its_second_derivative_is_used(rule):
    with pytest.raises(ValueError, match=r"max has a kink.*pathwise\(\) or score\(\)"):
        rule.check(Q, Objective("max", jnp.max), 3, None)
    rule.check(Q, Objective("max", jnp.max, smooth=True), 3, None)  # who says so is believed
    rules.pathwise().check(Q, Objective("max", jnp.max), 3, None)
    rules.score().check(Q, Objective("max", jnp.max), 3, None)


def test_an_objective_with_jumps_is_refused():
    stepped = Objective("fraction", STEPPED["fraction above"])
    with pytest.raises(ValueError, match="fraction jumps"):
        rules.pathwise().check(Q, stepped, 3, None)
    model = models.latent_model(lambda key: (), lambda theta, z, x: log_p(z - x))
    for rule in (rules.score(), rules.pathwise()):
        with pytest.raises(ValueError, match="fraction jumps"):
            vj.estimator(
                model,
                guides.per_datapoint(Q, 2),
                objective=stepped,
                rules=rule,
                num_samples=3,
                num_data=2,
            )


TABLE = jnp.arange(10.0)
STEPS = {
    "round": lambda z: jnp.sum(jnp.round(z)),
    "look-up": lambda z: TABLE[z[0].astype(int)],
    "comparison": lambda z: jnp.where(z[0] > 0.0, 1.0, 0.0),
    "argmax": lambda z: 1.0 * jnp.argmax(z),
    "sign": lambda z: jnp.sum(jnp.sign(z)),
}
CONTINUOUS = {
    "relu": lambda z: jnp.sum(jax.nn.relu(z)),
    "leaky": lambda z: jnp.sum(jax.nn.leaky_relu(z)),
    "clip": lambda z: jnp.sum(jnp.clip(z, 0.0, 1.0)),
    "sort": lambda z: jnp.sort(z)[0],
    "interp": lambda z: jnp.interp(z[0], TABLE, TABLE**2),
    "solve": lambda z: jnp.linalg.solve(jnp.eye(1) + z[:, None] ** 2, jnp.ones(1))[0],
    "logdet": lambda z: jnp.linalg.slogdet(jnp.eye(1) + z[:, None] ** 2)[1],
    "modulo": lambda z: jnp.mod(z, 2.0)[0],
    "own straight-through": lambda z: (z + jax.lax.stop_gradient(jnp.round(z) - z))[0],
    "scan": lambda z: jax.lax.scan(lambda c, _: (c * z[0], None), z[0], None, length=3)[0],
    "cond": lambda z: jax.lax.cond(z[0] > 0.0, lambda: z[0], lambda: 0.0 * z[0]),
    "jit": lambda z: jax.jit(lambda z: jnp.sum(z**2))(z),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_found(name):
    alone, beside = STEPS[name], lambda z: STEPS[name](z) - jnp.sum(z**2)
    z = jax.ShapeDtypeStruct((1,), jnp.float32)
    assert ways(trace(alone, z), (True,)) == {"step"}
    assert ways(trace(beside, z), (True,)) == {"step", "path"}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_is_continuous_is_not_taken_for_a_step(name):
    z = jax.ShapeDtypeStruct((1,), jnp.float32)
    assert ways(trace(CONTINUOUS[name], z), (True,)) == {"path"}


BITS = families.bernoulli(1)
IN_Z = [
    (rules.pathwise(), Q),
    (rules.doubly_reparameterized(), Q),
    (rules.fitted_score_term(), Q),
    (rules.quadratic_control(), Q),
    (rules.rebar(), BITS),
    (rules.straight_through(), BITS),
    (rules.gumbel_softmax(0.5), BITS),
]


@pytest.mark.parametrize("name", ["round", "look-up"])
@pytest.mark.parametrize(("rule", "family"), IN_Z, ids=lambda given: given.name)
def test_a_rule_that_differentiates_in_z_refuses_steps(rule, family, name):
    lam = family.init(jax.random.key(0))
    setting = dict(control=rule.init(jax.random.key(9)), state=rule.init_state(), num_samples=2)
    call = functools.partial(vj.expect, jax.random.key(0), family, lam, rule=rule, **setting)
    with pytest.raises(ValueError, match="the derivative is zero everywhere: write score"):
        call(lambda s: STEPS[name](s.z) - s.log_q)
    with pytest.warns(vj.StepWarning, match="a jump there is missing from the gradient"):
        jax.eval_shape(lambda: call(lambda s: STEPS[name](s.z) - jnp.sum(s.z**2) - s.log_q))


def test_a_rule_that_does_not_takes_them():
    for rule in (rules.score(), rules.enumerated()):
        vj.expect(
            jax.random.key(0),
            BITS,
            BITS.init(jax.random.key(0)),
            lambda s: STEPS["look-up"](s.z) - s.log_q,
            rule=rule,
            num_samples=2,
        )


def first_estimate(log_joint, family, rule, num_data=3, *, x=None):
    model = models.latent_model(lambda key: (), log_joint)
    est = vj.estimator(
        model, guides.per_datapoint(family, num_data), rules=rule, num_samples=2, num_data=num_data
    )
    params = est.init_params(jax.random.key(0))
    state = est.init(jax.random.key(1), params)
    x = jnp.arange(1.0 * num_data) if x is None else x
    batch = vj.Batch(x, jnp.arange(num_data))
    return jax.eval_shape(est.estimate, jax.random.key(2), params, state, batch)


def test_a_log_joint_with_steps_is_found_at_the_first_estimate():
    def stepped(theta, z, x):
        return STEPS["look-up"](z) * x

    with pytest.raises(ValueError, match="derivative is zero everywhere"):
        first_estimate(stepped, Q, rules.pathwise())
    first_estimate(stepped, Q, rules.score())
    with pytest.warns(vj.StepWarning):
        first_estimate(lambda t, z, x: stepped(t, z, x) + log_p(z), Q, rules.pathwise())


def test_a_step_in_a_block_that_is_not_differentiated_is_no_concern():
    blocks = families.product(c=BITS, z=Q)

    def log_joint(theta, z, x):
        return TABLE[z["c"][0].astype(int)] + log_p(z["z"] - x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_estimate(log_joint, blocks, {"c": rules.enumerated(), "z": rules.pathwise()})
    with pytest.warns(vj.StepWarning, match="gumbel_softmax|mixed"):
        first_estimate(log_joint, blocks, {"c": rules.gumbel_softmax(0.5), "z": rules.pathwise()})


def test_a_log_joint_that_never_looks_at_the_datum_is_refused():
    data = jnp.arange(3.0)
    whole = lambda theta, z, x: jnp.sum(-0.5 * (data - z[0]) ** 2)  # noqa: E731
    with pytest.raises(ValueError, match="never looks at the datum x.*num_data=1"):
        first_estimate(whole, Q, rules.pathwise())
    first_estimate(whole, Q, rules.pathwise(), num_data=1)
    jitted = jax.jit(whole)
    with pytest.raises(ValueError, match="never looks at the datum x"):
        first_estimate(jitted, Q, rules.pathwise())


def test_dependence_is_followed_through_any_detour():
    x = jax.ShapeDtypeStruct((), jnp.float32)

    def detour(a, b):
        count = jax.lax.while_loop(lambda n: n < b, lambda n: n + 1.0, 0.0)
        return a + jax.lax.stop_gradient(jnp.round(count))

    assert depends(trace(detour, x, x), (False, True)) == [True]
    assert depends(trace(lambda a, b: (a, a + b), x, x), (False, True)) == [False, True]
    assert has_constant_slope(lambda a, b: 2.0 * (b - a), x, x)
    assert not has_constant_slope(lambda a, b: a * b, x, x)


def test_terms_left_out_for_a_block_that_they_depend_on_are_refused():
    family = families.product(a=families.bernoulli(1), b=families.bernoulli(1))
    terms = {"a": ("one", "both"), "b": ("two",)}
    rule = rules.score_per_block(rules.by_terms(terms))

    def integrand(s):
        a, b = s.z["a"][0], s.z["b"][0]
        found = {"one": a, "two": 2.0 * b, "both": a * b}
        return sum(found.values()) - s.log_q, found

    lam = family.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"\['both'\] depend on block 'b'"):
        vj.expect(jax.random.key(1), family, lam, integrand, rule=rule, num_samples=2)
    whole = rules.score_per_block(rules.by_terms(terms | {"b": ("two", "both")}))
    vj.expect(jax.random.key(1), family, lam, integrand, rule=whole, num_samples=2)


def test_exp_cubo_says_when_all_weights_underflow():
    """Its gradient was exactly zero, without a word, for a log-joint shifted by -1000 nats."""
    objective = objectives.exp_cubo(reference=0.0)
    assert np.isnan(objective.value(jnp.array([-1000.0, -999.0])))
    assert np.isfinite(objective.value(jnp.array([-1000.0, -3.0])))
    assert objective.value(jnp.array([-jnp.inf, -jnp.inf])) == 0.0  # weights of zero are in order


@pytest.mark.parametrize("uncalled", [objectives.renyi, objectives.cubo, objectives.thermodynamic])
def test_an_objective_left_uncalled_is_told_so(uncalled):
    with pytest.raises(ValueError, match=r"called first, as in objectives\.renyi"):
        rules.pathwise().check(Q, uncalled, 3, None)


@pytest.mark.parametrize("num_samples", [0, -1, 2.0, None, True])
def test_a_number_of_samples_that_is_none_gets_its_own_error(num_samples):
    with pytest.raises(ValueError, match=r"but K is an int of at least 1\.$"):
        rules.pathwise().check(Q, objectives.elbo, num_samples, None)


def test_a_table_of_another_size_than_the_guides_is_refused():
    model = models.latent_model(lambda key: (), lambda theta, z, x: log_p(z - x))
    est = vj.estimator(model, guides.per_datapoint(Q, 12), rules=rules.pathwise(), num_data=12)
    params = est.init_params(jax.random.key(0))
    short = params._replace(phi=jax.tree.map(lambda leaf: leaf[:8], params.phi))
    batch = vj.Batch(jnp.arange(3.0), jnp.arange(3))
    with pytest.raises(ValueError, match=r"tables of \[8\] rows, but .* num_data=12"):
        est.estimate(jax.random.key(1), short, est.init(jax.random.key(2), short), batch)
