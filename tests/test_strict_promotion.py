"""Under `jax_numpy_dtype_promotion="strict"` no family, guide or model mixes dtypes; nothing is
compiled here.
"""

import jax
import jax.numpy as jnp
import pytest
from registry import FAMILIES, MODELS

import vijax as vj
from vijax import families, guides, models, rules
from vijax.families import Entropy, Kl, Moments, Natural, Reparameterized, UniformNoise

DISTINCT = {fixture.family.name: fixture for fixture in FAMILIES.values()}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def single(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize("name", DISTINCT)
def test_an_estimate_and_every_trait_of_a_family(name):
    fixture = DISTINCT[name]
    family, traits = fixture.family, fixture.family.traits
    rule = rules.score() if traits.get(Reparameterized) is None else rules.pathwise()

    def log_joint(theta, z, x):
        return theta["level"] * x + fixture.f(single(fixture.theta), z)

    model = models.latent_model(lambda key: {"level": jnp.ones(())}, log_joint)
    guide = guides.per_datapoint(family, 2)
    est = vj.estimator(model, guide, rules=rule, num_samples=2, num_data=2)

    def estimate(key):
        params = est.init_params(key)
        batch = vj.Batch(jnp.ones(2), jnp.arange(2))
        return est.estimate(key, params, est.init(key, params), batch)[0]

    def of_traits(key):
        lam = family.init(key)
        for kind in (Entropy, Kl, Moments, Natural, UniformNoise):
            if (record := traits.get(kind)) is None:
                continue
            given = {Kl: (lam, lam), Natural: (lam, lam, jnp.asarray(0.1))}.get(kind, (lam,))
            if kind is UniformNoise:
                given = (jax.random.uniform(key, (record.num_uniforms,)),)
            for function in (part for part in record if callable(part)):
                function(*given)

    found = jax.eval_shape(estimate, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    jax.eval_shape(of_traits, jax.random.key(0))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_at_data_that_it_simulates(name):
    fixture = MODELS[name]
    model, theta = fixture.model, single(fixture.theta)

    def at(key):
        latents, x = model.simulate(key, theta, 2)
        first = jax.tree.map(lambda leaf: leaf[0], x)
        if model.latents == ("w",):
            return model.log_prior(theta, latents), model.log_local(theta, latents, None, first)
        w, z = (latents["w"], latents["z"]) if "w" in model.latents else (None, latents)
        return model.log_local(theta, w, jax.tree.map(lambda leaf: leaf[0], z), first)

    found = jax.eval_shape(at, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_guides_that_compute_their_answer():
    family = families.diag_normal(2)
    encoder = models.Mlp((3,), 4)
    guide = guides.amortized(family, encoder, x=jnp.zeros(3))
    for each in (guide, guides.semi_amortized(guide, steps=2, rate=0.1)):
        model = models.vae(models.Mlp((3,), 3), 2, models.bernoulli_pixels())
        est = vj.estimator(model, each, rules=rules.pathwise(), num_data=2)
        batch = vj.Batch(jnp.ones((2, 3)), jnp.arange(2))
        found = jax.eval_shape(
            lambda key, est=est, batch=batch: est.estimate(
                key, est.init_params(key), {"z": ()}, batch
            ),
            jax.random.key(0),
        )
        assert found[0].loss.dtype == jnp.dtype("float32")
