"""Whatever would be silently wrong is refused when the estimator is built; the message says what,
why, what instead.
"""

import cases
import jax
import jax.numpy as jnp
import problems
import pytest

import vijax as vj
from vijax import baselines, families, guides, models
from vijax.objectives import elbo, iwae, renyi
from vijax.rules import (
    closed_form_entropy,
    closed_form_kl,
    doubly_reparameterized,
    enumerated,
    pathwise,
    score,
)

PATH, DREG, SCORE, ENUM = pathwise(), doubly_reparameterized(), score(), enumerated()


def moving_support():
    """Uniform on [0, exp(lam)]: a sampler with a derivative, but a support that moves."""
    return families.family(
        "uniform",
        init=lambda key: {"log_width": jnp.zeros(())},
        sample=lambda key, lam: jnp.exp(lam["log_width"]) * jax.random.uniform(key),
        log_prob=lambda lam, z: -lam["log_width"],
        reparameterized=True,
        fixed_support=False,
    )


def no_extras(fixed: vj.Family) -> vj.Family:
    return fixed._replace(entropy=None, kl=None)


def local(family, prior=None):
    model = models.latent_model(lambda key: (), lambda theta, z, x: jnp.zeros(()), prior=prior)
    return model, guides.per_datapoint(family, 3)


def both(w, z):
    model = models.hierarchical_model(
        lambda theta, w: jnp.zeros(()), lambda theta, w, z, x: jnp.zeros(())
    )
    return model, guides.hierarchical(w=guides.shared(w), z=guides.per_datapoint(z, 3))


NORMAL, BITS = families.diag_normal(2), families.bernoulli(3)
BLOCKS = families.product(c=families.categorical(3), z=NORMAL)
PRIOR_BITS = vj.Prior(BITS, lambda theta: {"logits": jnp.zeros(3)})
PRIOR_NORMAL = vj.Prior(NORMAL, lambda theta: {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
COUNTABLE = families.family(
    "poisson",
    init=lambda key: {"log_rate": jnp.zeros(())},
    sample=lambda key, lam: jax.random.poisson(key, jnp.exp(lam["log_rate"])).astype(float),
    log_prob=lambda lam, z: vj.densities.poisson(z, lam["log_rate"]),
)

REFUSED = {
    "pathwise on bits": (
        local(BITS),
        PATH,
        elbo,
        1,
        r"pathwise\(\) on bernoulli\(3\).*zero gradient.*Write score\(\)",
    ),
    "pathwise on a discrete block": (
        local(BLOCKS),
        PATH,
        elbo,
        1,
        r"reparameterized=False in blocks .*c.*False.*score\(\)",
    ),
    "pathwise for a discrete block": (
        local(BLOCKS),
        {"c": PATH, "z": PATH},
        elbo,
        1,
        r"pathwise\(\) on categorical\(3\)",
    ),
    "DReG on bits": (
        local(BITS),
        DREG,
        iwae,
        2,
        r"doubly_reparameterized\(\) on bernoulli\(3\).*zero gradient",
    ),
    "sticking-the-landing on bits": (
        local(BITS),
        DREG,
        elbo,
        1,
        r"no differentiable sampler.*Write score\(\)",
    ),
    "leave-one-out alone": (
        local(NORMAL),
        SCORE,
        elbo,
        1,
        r"num_samples=1, but it needs at least 2.*moving_average",
    ),
    "VIMCO alone": (local(BITS), SCORE, iwae, 1, r"num_samples=1, but it needs at least 2"),
    "moving support": (
        local(moving_support()),
        score(baselines.none()),
        elbo,
        1,
        r"support moves .*boundary",
    ),
    "moving support, path": (
        local(moving_support()),
        PATH,
        elbo,
        1,
        r"fixed_support=False.*transform inside the log-joint",
    ),
    "KL without a stated prior": (
        local(NORMAL),
        closed_form_kl(PATH),
        elbo,
        1,
        r"no prior is stated .*Write pathwise",
    ),
    "KL to another family": (
        local(NORMAL, PRIOR_BITS),
        closed_form_kl(PATH),
        elbo,
        1,
        r"the prior is bernoulli\(3\), another",
    ),
    "KL of a family without one": (
        local(no_extras(NORMAL), PRIOR_NORMAL),
        closed_form_kl(PATH),
        elbo,
        1,
        r"no closed-form KL",
    ),
    "KL inside IWAE": (
        local(NORMAL, PRIOR_NORMAL),
        closed_form_kl(PATH),
        iwae,
        2,
        r"not linear in the log-weights",
    ),
    "entropy inside IWAE": (
        local(NORMAL),
        closed_form_entropy(DREG),
        iwae,
        2,
        r"gradient of another bound",
    ),
    "entropy of a family without one": (
        local(no_extras(NORMAL)),
        closed_form_entropy(PATH),
        elbo,
        1,
        r"closed-form entropy",
    ),
    "the inner rule's own needs": (
        local(BITS),
        closed_form_entropy(PATH),
        elbo,
        1,
        r"pathwise\(\) on bernoulli\(3\)",
    ),
    "enumeration of the reals": (
        local(NORMAL),
        ENUM,
        elbo,
        1,
        r"infinitely many points.*Write score\(\)",
    ),
    "enumeration of the integers": (
        local(COUNTABLE),
        ENUM,
        elbo,
        1,
        r"its support has infinitely many",
    ),
    "enumeration of too many": (
        local(families.bernoulli(17)),
        ENUM,
        elbo,
        1,
        r"131072 points; at most 65536",
    ),
    "enumeration of IWAE": (local(BITS), ENUM, iwae, 2, r"not linear in the log-weights"),
    "score inside IWAE": (
        local(BLOCKS),
        {"z": PATH, "c": SCORE},
        iwae,
        2,
        r"for 'c' sits inside a non-linear .*first",
    ),
    "STL inside IWAE": (
        local(BLOCKS),
        {"c": SCORE, "z": DREG},
        iwae,
        2,
        r"doubly_reparameterized\(\) for 'z' sits inside",
    ),
    "enumeration inside Renyi": (
        local(BLOCKS),
        {"z": DREG, "c": ENUM},
        renyi(0.5),
        2,
        r"enumerated\(\) for 'c' sits inside",
    ),
    "score under a global IWAE": (
        both(NORMAL, BITS),
        {"w": DREG, "z": SCORE},
        iwae,
        {"w": 2, "z": 2},
        r"for 'z' sits inside a non-linear objective",
    ),
    "a missing block": (
        local(BLOCKS),
        {"c": SCORE},
        elbo,
        2,
        r"rules has entries \['c'\].*blocks \['c', 'z'\]",
    ),
    "a wrong block": (local(BLOCKS), {"c": SCORE, "y": PATH}, elbo, 2, r"\['c', 'y'\]"),
    "blocks of none": (
        local(NORMAL),
        {"a": PATH},
        elbo,
        1,
        r"diag_normal\(2\) has no named blocks",
    ),
    "a wrong level": (
        both(NORMAL, BITS),
        {"w": PATH, "x": ENUM},
        elbo,
        1,
        r"rules has entries \['w', 'x'\].*\['w', 'z'\]",
    ),
    "an objective for one level": (
        both(NORMAL, NORMAL),
        PATH,
        {"w": elbo},
        1,
        r"objective has entries \['w'\]",
    ),
    "samples for one level": (
        both(NORMAL, NORMAL),
        PATH,
        elbo,
        {"w": 2},
        r"num_samples has entries \['w'\]",
    ),
    "a name for an objective": (
        local(NORMAL),
        PATH,
        "elbo",
        1,
        r"objective for 'z' is 'elbo': give a function",
    ),
    "no samples": (local(NORMAL), PATH, elbo, 0, r"num_samples=0 must be an int of at least 1"),
    "half a sample": (local(NORMAL), PATH, elbo, 1.5, r"num_samples=1.5 must be an int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_built(name):
    (model, guide), rules, objective, num_samples, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        vj.estimator(
            model, guide, objective=objective, rules=rules, num_samples=num_samples, num_data=3
        )


def test_every_case_of_the_table_is_built():
    """The checks refuse no more than they should."""
    assert all(cases.build(case).estimator.num_data == problems.N for case in cases.CASES)


@pytest.mark.parametrize("rule", [PATH, DREG, ENUM, SCORE], ids=lambda rule: rule.name)
def test_bare_use_is_checked_too(rule):
    wrong = BITS if rule in (PATH, DREG) else NORMAL
    with pytest.raises(ValueError, match=r"on (bernoulli\(3\)|diag_normal\(2\))"):
        lam = wrong.init(jax.random.key(0))
        rule.surrogate(
            jax.random.key(0),
            wrong,
            lam,
            lambda s: jnp.sum(s.z) - s.log_q,
            objective=elbo,
            num_samples=1,
        )


def test_a_non_linear_bound_on_a_global_latent_needs_all_the_data():
    estimator, params, state = cases.build(cases.Case(problems.regression, DREG, iwae, 2))
    problem = cases.cached_problem(problems.regression)
    with pytest.raises(
        ValueError,
        match="minibatch of 2 of 3 data: the objective of a scaled subsample is no bound",
    ):
        estimator.estimate(jax.random.key(0), params, state, problems.batch_of(problem, (0, 1)))
    assert jnp.isfinite(
        estimator.estimate(jax.random.key(0), params, state, problems.batch_of(problem, cases.ALL))[
            0
        ].loss
    )


def test_model_and_guide_must_have_the_same_latents():
    model, guide = local(NORMAL)
    with pytest.raises(
        ValueError, match=r"the model has latents \('z',\), the guide \('w',\). Use guides.shared"
    ):
        vj.estimator(model, guides.shared(NORMAL), rules=PATH, num_data=3)
    with pytest.raises(
        ValueError, match=r"hierarchical\(w=..., z=...\) joins a global guide with a local one"
    ):
        guides.hierarchical(w=guide, z=guide)


@pytest.mark.parametrize(
    "num_data, message",
    [(4, "has 3 rows, but num_data=4"), (0, "num_data=0"), (3.0, "num_data=3.0")],
)
def test_num_data_is_the_size_of_the_whole_data_set(num_data, message):
    with pytest.raises(ValueError, match=message):
        vj.estimator(*local(NORMAL), rules=PATH, num_data=num_data)


def test_num_data_has_no_default():
    with pytest.raises(TypeError, match="num_data"):
        vj.estimator(*local(NORMAL), rules=PATH)


def test_split_needs_one_data_size():
    small, large = (
        vj.estimator(problems.regression().model, guides.shared(NORMAL), rules=PATH, num_data=n)
        for n in (3, 4)
    )
    with pytest.raises(ValueError, match="num_data differs, 3 for theta and 4 for phi"):
        vj.split(theta=small, phi=large)


def test_a_log_prior_must_be_a_scalar():
    model = models.bayes_model(lambda theta, w: -(w**2), lambda theta, w, x: jnp.zeros(()))
    with pytest.raises(ValueError, match=r"log_prior returned shape \(2,\).* sum over"):
        vj.estimator(model, guides.shared(NORMAL), rules=PATH, num_data=3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: families.diag_normal(0), r"dim=0.*at least 1"),
        (lambda: families.full_normal(2, init_scale=0.0), r"init_scale=0.0.*positive"),
        (lambda: families.bernoulli(0), r"dim must be at least 1"),
        (lambda: families.categorical(1), r"at least 2 classes"),
        (lambda: families.product(), r"no blocks: name at least one"),
        (
            lambda: families.family("f", init=lambda key: (), log_prob=lambda lam, z: z),
            r"'f' has no complete sampler",
        ),
        (lambda: baselines.moving_average(1.0), r"decay=1.0.*strictly between 0 and 1"),
        (lambda: renyi(float("inf")), r"alpha=inf.*finite"),
        (lambda: guides.per_datapoint(NORMAL, 0), r"at least one row"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_forgotten_sum_is_refused():
    """Broadcasting would weigh the log-density against log q by 1 / P."""
    family = vj.families.diag_normal(2)
    model = vj.models.latent_model(
        lambda key: (), lambda theta, z, x: vj.densities.normal(x, z, 0.0)
    )
    estimator = vj.estimator(
        model, vj.guides.per_datapoint(family, 3), rules=vj.rules.pathwise(), num_data=3
    )
    params, batch = (
        estimator.init_params(jax.random.key(0)),
        vj.Batch(jnp.zeros((3, 2)), jnp.arange(3)),
    )
    with pytest.raises(ValueError, match=r"log_joint returned shape \(2,\) .*sum over dimensions"):
        estimator.estimate(jax.random.key(0), params, {"z": ()}, batch)
    with pytest.raises(ValueError, match=r"integrand .*returned shape \(2,\)"):
        vj.rules.pathwise().surrogate(
            jax.random.key(0),
            family,
            family.init(jax.random.key(0)),
            lambda s: s.z - s.log_q,
            objective=vj.objectives.elbo,
        )


def test_a_batch_of_parameters_in_a_bare_rule_is_refused():
    family = vj.families.diag_normal(2)
    lam = {"loc": jnp.zeros((5, 2)), "log_scale": jnp.zeros((5, 2))}
    with pytest.raises(ValueError, match="for a batch, vmap them"):
        vj.rules.pathwise().surrogate(
            jax.random.key(0),
            family,
            lam,
            lambda s: jnp.sum(s.z) - s.log_q,
            objective=vj.objectives.elbo,
        )


def test_a_bare_rule_says_what_it_keeps():
    family = vj.families.bernoulli(2)
    with pytest.raises(ValueError, match=r"state=rule.init_state\(\)"):
        vj.rules.score(vj.baselines.moving_average()).surrogate(
            jax.random.key(0),
            family,
            {"logits": jnp.zeros(2)},
            lambda s: jnp.sum(s.z) - s.log_q,
            objective=vj.objectives.elbo,
        )


def test_rows_beyond_the_table_have_no_q():
    family = vj.families.diag_normal(2)
    model = vj.models.latent_model(
        lambda key: (), lambda theta, z, x: jnp.sum(vj.densities.normal(x, z, 0.0))
    )
    guide = vj.guides.per_datapoint(family, 3)
    params = vj.Params((), guide.init(jax.random.key(0)), ())
    with pytest.raises(ValueError, match="the guide's table has 3 rows"):
        vj.diagnostics.log_evidence(
            jax.random.key(0), model, guide, params, vj.Batch(jnp.zeros((2, 2)), jnp.arange(2, 4))
        )
    with pytest.raises(TypeError, match="write vijax.Batch"):
        vj.diagnostics.log_evidence(jax.random.key(0), model, guide, params, jnp.zeros((2, 2)))
