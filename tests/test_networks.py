"""What a user calls a network is a function of parameters and one datum, drawn afresh by every key;
what keeps state beside them is refused where it would change.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close
from flax import linen, nnx

import vijax as vj
from vijax import densities, families, guides, models, networks

X = jnp.array([0.5, -1.0, 2.0])
FAMILY = families.diag_normal(2)


class Normalised(linen.Module):
    """Running averages beside the parameters."""

    train: bool

    @linen.compact
    def __call__(self, x):
        hidden = linen.BatchNorm(use_running_average=not self.train)(linen.Dense(4)(x)[None])
        return hidden[0]


class Dropping(linen.Module):
    """A mask, drawn at every call."""

    deterministic: bool

    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=self.deterministic)(linen.Dense(4)(x))


class Both(nnx.Module):
    """Running averages and a mask."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.dense(x)[None])[0])


def evaluating(rngs):
    module = Both(rngs=rngs)
    module.eval()
    return module


@pytest.mark.parametrize("train", [True, False])
def test_linen_state_beside_the_parameters_is_refused(train):
    """An optimiser was given the averages to train."""
    with pytest.raises(ValueError, match=r"\['batch_stats'\].*train.*GroupNorm or .*LayerNorm"):
        guides.amortized(FAMILY, Normalised(train), x=X)


def test_linen_dropout_is_refused_until_it_is_deterministic():
    with pytest.raises(ValueError, match=r"Dropping draws random numbers.*deterministic=True"):
        guides.amortized(FAMILY, Dropping(False), x=X)
    guide = guides.amortized(FAMILY, Dropping(True), x=X)
    assert set(guide.init(jax.random.key(0))["z"]) == {"params"}


class Trained(linen.Module):
    """Dropout while it is trained."""

    @linen.compact
    def __call__(self, x, *, train):
        return linen.Dense(4)(linen.Dropout(0.5, deterministic=not train)(x))


def test_dropout_takes_the_key_that_a_datum_brings():
    """As the docstring of `as_network` writes it: each datum's own mask while there are keys, the
    same in every view of the estimate; none without.
    """
    encoder = Trained()

    def apply(params, x):
        keyed = {"dropout": jax.random.wrap_key_data(x["key"])} if "key" in x else None
        return encoder.apply(params, x["pixels"], train="key" in x, rngs=keyed)

    guide = guides.amortized(
        FAMILY, (lambda key: encoder.init(key, jnp.zeros(3), train=False), apply)
    )
    model = models.latent_model(
        lambda key: (), lambda theta, z, x: jnp.sum(densities.normal(x["pixels"][:2], z, 0.0))
    )
    estimator = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=4)
    params, pixels = estimator.init_params(jax.random.key(0)), jnp.ones((4, 3))
    bits = np.random.default_rng(0).integers(0, 2**32, (2, 4, 2), np.uint32)

    @jax.jit
    def located(x):
        return vj.in_lam(estimator, params, vj.Batch(x, jnp.arange(4))).phi.lam["z"]["loc"]

    plain = located({"pixels": pixels})
    first, again, other = (located({"pixels": pixels, "key": bits[i]}) for i in (0, 0, 1))
    assert bool(jnp.all(plain == plain[:1])) and bool(jnp.all(first == again))
    assert bool(jnp.any(first != first[:1])) and bool(jnp.any(first != other))

    batches = (
        vj.Batch({"pixels": np.ones((4, 3), np.float32), "key": keys}, np.arange(4))
        for keys in bits
    )
    algorithm = vj.descent(estimator, optax.sgd(0.01))
    result = vj.fit(jax.random.key(1), algorithm, params, batches, num_steps=2)
    kernel = result.params.phi["z"]["params"]["Dense_0"]["kernel"]
    assert bool(jnp.any(kernel != params.phi["z"]["params"]["Dense_0"]["kernel"]))


def test_nnx_state_that_a_call_changes_is_refused():
    """Both of a class that takes `rngs` alone and of a function of it."""
    for encoder in (Both, lambda rngs: Both(rngs=rngs)):
        guide = guides.amortized(FAMILY, encoder)
        phi = guide.init(jax.random.key(0))
        for call in (guide.at, jax.jit(guide.at)):
            with pytest.raises(ValueError, match=r"Both changes state.*module.eval\(\)"):
                call(phi, X)


def test_nnx_state_that_stays_is_a_constant_and_not_learned():
    guide = guides.amortized(FAMILY, evaluating)
    phi = guide.init(jax.random.key(0))
    assert set(phi["z"]) == {"dense", "norm"} and set(phi["z"]["norm"]) == {"bias", "scale"}
    kernel, bias = phi["z"]["dense"]["kernel"], phi["z"]["dense"]["bias"]
    output = (X @ kernel + bias) / jnp.sqrt(1.0 + 1e-5)  # averages 0 and 1
    assert_close(guide.at(phi, X), {"loc": output[:2], "log_scale": output[2:]}, tolerance=1e-6)


def test_nnx_modules_start_anew_under_every_key():
    guide = guides.amortized(FAMILY, lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    one, again, other = (guide.init(jax.random.key(seed))["z"]["kernel"] for seed in (0, 0, 1))
    assert bool(jnp.all(one == again)) and not bool(jnp.any(one == other))
    jitted = jax.jit(guide.init)(jax.random.key(0))["z"]["kernel"]
    assert_close(jitted, one, tolerance=1e-6)


def test_an_nnx_module_that_is_built_starts_from_itself_on_request_only():
    module = nnx.Linear(3, 4, rngs=nnx.Rngs(7))
    with pytest.raises(ValueError, match=r"restarts would be alike. Write lambda rngs: Linear"):
        networks.as_network(module)
    network = networks.as_network(networks.pretrained(module))
    for seed in (0, 1):
        params = network.init(jax.random.key(seed))
        assert bool(jnp.all(params["kernel"] == module.kernel[...]))
        assert_close(network.apply(params, X), module(X), tolerance=1e-6)


def test_an_equinox_module_is_a_pair():
    """As the docstring of `as_network` writes it; the gradient reaches every layer."""

    def make(key):
        return eqx.nn.MLP(3, 4, width_size=5, depth=1, key=key)

    params, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)
    pair = (
        lambda key: eqx.filter(make(key), eqx.is_inexact_array),
        lambda params, x: eqx.combine(params, static)(x),
    )
    guide = guides.amortized(FAMILY, pair, x=X)
    phi = guide.init(jax.random.key(0))
    lam = guide.at(phi, X)
    output = make(jax.random.key(0))(X)
    assert_close(lam, {"loc": output[:2], "log_scale": output[2:]}, tolerance=1e-6)
    grads = jax.grad(lambda phi: jnp.sum(guide.at(phi, X)["loc"]))(phi)
    assert all(bool(jnp.any(leaf != 0.0)) for leaf in jax.tree.leaves(grads))
