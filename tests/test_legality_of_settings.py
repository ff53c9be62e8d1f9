"""Settings, shapes and bare calls that would be silently wrong are refused at once."""

import jax
import jax.numpy as jnp
import pytest
from refused import NORMAL, PATH

import vijax as vj
from vijax import baselines, families, guides, supports
from vijax.objectives import renyi
from vijax.rules import score


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: families.diag_normal(0), r"diag_normal\(0\).*at least 1"),
        (lambda: families.full_normal(2, init_scale=0.0), r"init_scale=0.0.*positive"),
        (lambda: families.bernoulli(0), r"bernoulli\(0\).*at least 1"),
        (lambda: families.categorical(1), r"at least 2 classes"),
        (lambda: families.product(), r"no blocks: name at least one"),
        (
            lambda: families.family(
                "f", init=lambda key: (), log_prob=lambda lam, z: z, support=supports.real()
            ),
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
        lam = family.init(jax.random.key(0))
        vj.expect(jax.random.key(0), family, lam, lambda s: s.z - s.log_q, rule=PATH)


def test_a_batch_of_parameters_in_a_bare_rule_is_refused():
    family = vj.families.diag_normal(2)
    lam = {"loc": jnp.zeros((5, 2)), "log_scale": jnp.zeros((5, 2))}
    with pytest.raises(ValueError, match="for a batch, vmap them"):
        vj.expect(jax.random.key(0), family, lam, lambda s: jnp.sum(s.z) - s.log_q, rule=PATH)


def test_a_bare_rule_says_what_it_keeps():
    family = vj.families.bernoulli(2)
    with pytest.raises(ValueError, match=r"state=rule.init_state\(\)"):
        vj.expect(
            jax.random.key(0),
            family,
            {"logits": jnp.zeros(2)},
            lambda s: jnp.sum(s.z) - s.log_q,
            rule=score(baselines.moving_average()),
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
