"""Does a model keep what it promises? One call."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vijax.inference import Model
from vijax.shapes import total_and_terms
from vijax.testing.averages import (
    Average,
    assert_agree,
    assert_close,
    average,
    compiled,
    exactly,
    in_float,
)
from vijax.testing.simulated import (
    DataSet,
    by_posterior,
    by_prior,
    evidences,
    from_priors,
    identities,
    simulated,
)
from vijax.testing.statistics import check_statistics
from vijax.types import Array, Family, Key, PyTree, Scalar

NUM_WEIGHTS = 20
MEANINGS = {
    "identities of the joint density over simulated data": (
        "simulate and the log-density disagree: a scale for a variance, another order of "
        "arguments, or a term that is missing in one of them"
    ),
    "scores of the stated priors at simulated latents": (
        "simulate draws the latent from another distribution than the stated prior"
    ),
    "scores of log_evidence over simulated data": (
        "log_evidence is not the log of the integral of the joint density over the latents"
    ),
}
EVIDENCE = "log_evidence is not the log of the integral of the joint density over the latents"
POSTERIOR = (
    "log p(z, x) - log q(z) is the same at every z if q is the exact posterior: its lam is of "
    "another family or parametrisation, or `posterior` is that of another model"
)


def check_model(
    model: Model,
    theta: PyTree,
    x: PyTree = None,
    *,
    key: Key | None = None,
    latents: PyTree = None,
    families: Mapping[str, Family] | None = None,
    num_data: int = 3,
    num_draws: int = 4000,
    max_z: float = 5.0,
) -> dict[str, float]:
    """Everything that a model promises, at one theta, in float64: its log-densities are one finite
    number with finite derivatives that depend on the datum; `simulate` draws from them and from the
    stated priors; `log_evidence` is the integral and `posterior` the posterior, where given; its
    `SufficientStatistics` are those of its log-joint (`Conditionals` are not looked at).

    Simulation is compared by identities of the density: derivatives in theta have mean zero, so
    have those in a real latent, and a discrete one has the mean of its conditional probabilities.

    Args:
      theta: away from special points, such as a perturbed `model.init(key)`.
      x: a few data, leaves [N, ...]; default simulated ones.
      key: default `jax.random.key(0)`.
      latents: {"w": one value, "z": one value}, needed where the model can neither simulate nor
        has stated priors.
      families: {"w": family, "z": family} that the posterior's lam is of, and whose supports the
        latents have; default those of the stated priors.
      num_data: N of a simulated data set.
      num_draws: S.
      max_z: what counts as different, in standard errors.

    Returns:
      {property: its largest difference in standard errors}.

    Raises:
      AssertionError: what does not hold, by how much, and what that usually means.
    """
    key = jax.random.key(0) if key is None else key
    of_priors = {name: prior.family for name, prior in model.priors.items()}
    families = {**of_priors, **(families or {})}
    with in_float(64):
        theta, x, latents = jax.tree.map(_wide, (theta, x, latents))
        place = _place(model, theta, x, latents, num_data, key)
        _check_density(model, theta, place)
        found: dict[str, float] = {}
        if model.simulate is not None:
            keys = jax.random.split(key, num_draws)
            seen = compiled(lambda keys: _averages(model, families, theta, num_data, keys), keys)
            for name, pair in zip(MEANINGS, seen, strict=True):
                settings = {"meaning": f"{MEANINGS[name]}.", "max_z": max_z}
                found[name] = assert_agree(*pair, what=f"{name}, mean of ", **settings)[1]
        found |= check_statistics(model, families.get("z"), theta, place, key, num_draws, max_z)
        return found | _check_evidence(model, families, theta, place, key, num_draws, max_z)


def _averages(
    model: Model, families: Mapping[str, Family], theta: PyTree, num_data: int, keys: Key
) -> list[tuple[Average, Average]]:
    """What of `identities` has mean zero, and zero."""

    def one(key: Key) -> tuple[PyTree, PyTree, PyTree]:
        return identities(model, families, theta, simulated(model, theta, num_data, key))

    seen = jax.vmap(one)(keys)
    return [
        (average(leaf), exactly(jax.tree.map(lambda d: jnp.zeros_like(d[0]), leaf)))
        for leaf in seen
    ]


def _place(
    model: Model, theta: PyTree, x: PyTree, latents: PyTree, num_data: int, key: Key
) -> DataSet:
    """Where to look: simulated, drawn from the stated priors, or given."""
    if model.simulate is not None:
        drawn = simulated(model, theta, num_data, key)
    else:
        assert x is not None, "the model has no simulate: give x, a few data, leaves [N, ...]."
        drawn = DataSet(None, None, x)
        num_data = jax.tree.leaves(x)[0].shape[0]
        missing = set(model.latents) - set(model.priors) - set(latents or {})
        assert not missing, (
            f"the model neither simulates nor states a prior of {sorted(missing)}: give a value of "
            "it, latents={...}."
        )
        if set(model.priors) >= set(model.latents):
            drawn = from_priors(model, theta, x, key)
    if x is not None:
        num_data = jax.tree.leaves(x)[0].shape[0]
        few = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], num_data, axis=0), drawn.z)
        drawn = DataSet(drawn.w, few, x)
    if latents is not None:
        given = {"w": drawn.w, "z": drawn.z}
        if "w" in latents:
            given["w"] = latents["w"]
        if "z" in latents:
            given["z"] = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_data), latents["z"])
        drawn = DataSet(given["w"], given["z"], drawn.x)
    return drawn


def _check_density(model: Model, theta: PyTree, place: DataSet) -> None:
    """One finite number, finite derivatives, a datum that matters, float32 as float64."""
    z, x = jax.tree.map(lambda leaf: leaf[0], (place.z, place.x))

    def local(theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> Scalar:
        return total_and_terms(model.log_local(theta, w, z, x), "log_local")[0]

    def prior(theta: PyTree, w: PyTree) -> Scalar:
        return total_and_terms(model.log_prior(theta, w), "log_prior")[0]

    try:
        value, slopes = compiled(jax.value_and_grad(local, (0, 1, 2)), theta, place.w, z, x)
        prior_value, prior_slopes = compiled(jax.value_and_grad(prior, (0, 1)), theta, place.w)
    except ValueError as wrong:
        raise AssertionError(f"the log-density is no number of one datum: {wrong}") from wrong
    for what, tree in {
        "log_local": value,
        "the gradient of log_local": slopes,
        "log_prior": prior_value,
        "the gradient of log_prior": prior_slopes,
    }.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path)
            assert np.all(np.isfinite(leaf)), f"{what}{name} is not finite at a draw."
    each = compiled(jax.vmap(lambda x: local(theta, place.w, z, x)), place.x)
    differ = any(np.any(leaf[:1] != leaf) for leaf in map(np.asarray, jax.tree.leaves(place.x)))
    assert not differ or np.any(each != each[0]), (
        "log_local is the same for every datum: it does not read its x, or counts all the data."
    )
    with in_float(32):
        narrow = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), (theta, place.w, z, x)
        )
        assert_close(local(*narrow), value, tolerance=1e-3, what="log_local in float32")


def _check_evidence(
    model: Model,
    families: Mapping[str, Family],
    theta: PyTree,
    place: DataSet,
    key: Key,
    num_draws: int,
    max_z: float,
) -> dict[str, float]:
    """By the posterior, whose weights are constant; by draws from the prior where it is unknown."""
    found: dict[str, float] = {}
    if model.log_evidence is None and model.posterior is None:
        return found
    if (weigh := by_posterior(model, families, theta, place)) is not None:
        log_w = compiled(weigh, jax.random.split(key, NUM_WEIGHTS))
        what = f"the log-weights of the posterior. {POSTERIOR}"
        assert_close(log_w, log_w[:1] + 0.0 * log_w, tolerance=1e-7, what=what)
        if model.log_evidence is not None:
            exact = compiled(lambda x: evidences(model, theta, x), place.x)
            assert_close(log_w[0], exact, tolerance=1e-7, what=f"log_evidence. {EVIDENCE}")
            found["evidence"] = 0.0
    elif model.log_evidence is not None and set(model.priors) >= set(model.latents):
        relative = compiled(
            lambda keys: by_prior(model, theta, place.x, keys),
            jax.random.split(key, 10 * num_draws),
        )
        ours = jax.device_get(average(jnp.asarray(relative)))
        one = exactly(np.ones(relative.shape[1:]))
        what = "importance sampling from the prior: p(x | z) / evidence against 1,"
        _, z = assert_agree(ours, one, what=what, meaning=f"{EVIDENCE}.", max_z=max_z)
        found["evidence by the prior"] = z
    return found


def _wide(leaf: Array) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
