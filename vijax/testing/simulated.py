"""Data sets that a model simulates, and the numbers of known mean that its densities make there."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax import supports
from vijax.families import lam_like, sample, transports
from vijax.inference import Model
from vijax.shapes import total_and_terms
from vijax.types import Array, Family, Key, PyTree, Scalar


class DataSet(NamedTuple):
    """A data set with its latents, None where there are none.

    Attributes:
      w: of the global latent.
      z: leaves [N, ...].
      x: leaves [N, ...].
    """

    w: PyTree
    z: PyTree
    x: PyTree


def simulated(model: Model, theta: PyTree, num_data: int, key: Key) -> DataSet:
    """By the model."""
    assert model.simulate is not None
    latents, x = model.simulate(key, theta, num_data)
    both = latents if len(model.latents) == 2 else {model.latents[0]: latents}
    return DataSet(both.get("w"), both.get("z"), x)


def from_priors(model: Model, theta: PyTree, x: PyTree, key: Key) -> DataSet:
    """Latents from the stated priors beside given data."""
    key_w, key_z = jax.random.split(key)
    w = z = None
    if "w" in model.latents:
        prior = model.priors["w"]
        w = sample(key_w, prior.family, prior.locate(theta))
    if "z" in model.latents:
        prior = model.priors["z"]
        lam, noise = prior.locate(theta, w), prior.family.noise(key_z, _size(x))
        z, _ = transports(prior.family, lam, noise)
    return DataSet(w, z, x)


def joint_of(model: Model, theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> Scalar:
    """[] log p(w, z, x) of a data set."""
    prior = total_and_terms(model.log_prior(theta, w), "log_prior")[0]
    return prior + jnp.sum(locals_of(model, theta, w, z, x))


def locals_of(model: Model, theta: PyTree, w: PyTree, z: PyTree, x: PyTree) -> Array:
    """[N] log p(z_i, x_i | w)."""

    def one(z: PyTree, x: PyTree) -> Scalar:
        return total_and_terms(model.log_local(theta, w, z, x), "log_local")[0]

    return jax.vmap(one)(z, x)


def evidences(model: Model, theta: PyTree, x: PyTree) -> Array:
    """Log-evidence, [N] with local latents alone, else [] of the whole data set."""
    assert model.log_evidence is not None
    if model.latents == ("z",):
        return jax.vmap(model.log_evidence, (None, 0))(theta, x)
    return model.log_evidence(theta, x)


def by_posterior(
    model: Model, families: Mapping[str, Family], theta: PyTree, place: DataSet
) -> Callable[[Key], Array] | None:
    """Log-weights of keys [S] under the posterior, [S, N] or [S]; None where its family is not
    known, or it is of w and z together.
    """
    posterior, name = model.posterior, model.latents[0]
    if posterior is None or len(model.latents) == 2 or name not in families:
        return None
    family = families[name]

    def draw(key: Key, lam: PyTree) -> tuple[PyTree, Scalar]:
        return family.transport(lam, jax.tree.map(lambda leaf: leaf[0], family.noise(key, 1)))

    def local(key: Key) -> Array:
        lam = jax.vmap(posterior, (None, 0))(theta, place.x)
        z, log_q = jax.vmap(draw)(jax.random.split(key, _size(place.x)), lam)
        return locals_of(model, theta, None, z, place.x) - log_q

    def whole(key: Key) -> Array:
        w, log_q = draw(key, posterior(theta, place.x))
        return joint_of(model, theta, w, None, place.x) - log_q

    datum = jax.tree.map(lambda leaf: leaf[0], place.x) if name == "z" else place.x
    lam, like = jax.eval_shape(posterior, theta, datum), lam_like(family)
    same = jax.tree.map(lambda leaf: leaf.shape, lam) == jax.tree.map(lambda leaf: leaf.shape, like)
    return jax.vmap(local if name == "z" else whole) if same else None


def by_prior(model: Model, theta: PyTree, x: PyTree, keys: Key) -> Array:
    """p(x | latents) / p(x) at draws of the stated priors, [S, N] or [S]: 1 on average."""
    exact = evidences(model, theta, x)

    def one(key: Key) -> Array:
        drawn = from_priors(model, theta, x, key)
        log_p = locals_of(model, theta, drawn.w, drawn.z, x)
        if drawn.z is not None:
            prior = model.priors["z"]
            lam = prior.locate(theta, drawn.w)
            log_p = log_p - jax.vmap(lambda z: prior.family.log_prob(lam, z))(drawn.z)
        return jnp.exp((log_p if exact.ndim else jnp.sum(log_p)) - exact)

    return jax.vmap(one)(keys)


def _size(x: PyTree) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def identities(
    model: Model, families: Mapping[str, Family], theta: PyTree, draw: DataSet
) -> tuple[dict[str, PyTree], dict[str, PyTree], dict[str, PyTree]]:
    """Numbers that have mean zero over simulated data sets: of the joint density, of the stated
    priors, of the evidence.
    """

    def joint(theta: PyTree, w: PyTree, z: PyTree) -> Scalar:
        return joint_of(model, theta, w, z, draw.x)

    contrast = sum(map(_contrast, jax.tree.leaves(draw.x)), jnp.zeros(()))
    density: dict[str, PyTree] = {"theta": jax.grad(joint)(theta, draw.w, draw.z)}
    prior, evidence = {}, {}
    for name, value in {"w": draw.w, "z": draw.z}.items():
        if value is None:
            continue

        def at(moved: PyTree, name: str = name) -> Scalar:
            return joint(theta, *((moved, draw.z) if name == "w" else (draw.w, moved)))

        if name in families:
            density[name] = _of_support(families[name].support, at, value, contrast)
        if name in model.priors:
            stated = model.priors[name]
            lam = stated.locate(theta) if name == "w" else stated.locate(theta, draw.w)

            def score(value: PyTree, lam: PyTree = lam, family: Family = stated.family) -> PyTree:
                return jax.grad(family.log_prob)(lam, value)

            prior[name] = score(value) if name == "w" else jax.vmap(score)(value)
    if model.log_evidence is not None:
        evidence["theta"] = jax.grad(lambda theta: jnp.sum(evidences(model, theta, draw.x)))(theta)
    return density, prior, evidence


def _of_support(
    support: PyTree, at: Callable[[PyTree], Scalar], value: PyTree, contrast: Scalar
) -> PyTree:
    """Stein's identities for real parts, E[d log p / dz] = 0 and E[z d log p / dz] = -1; bits and
    classes have the mean of their conditional probabilities given all else. Each also times a
    number made of the data alone, given which they hold too.
    """
    parts, (leaves, tree) = supports.parts(support), jax.tree.flatten(value)
    slopes, found = jax.tree.leaves(jax.grad(at)(value)), []
    for place, (part, leaf, slope) in enumerate(zip(parts, leaves, slopes, strict=True)):

        def moved(leaf: Array, place: int = place) -> Scalar:
            return at(tree.unflatten([*leaves[:place], leaf, *leaves[place + 1 :]]))

        if part.name == "real":
            found.append((slope, contrast * slope, leaf * slope + 1.0))
        elif part.name == "binary":
            seen = _surprise(moved, leaf, leaf.reshape(-1), jnp.arange(2.0))
            found.append((seen, contrast * seen))
        elif part.name == "one_hot":
            classes = jnp.eye(leaf.shape[-1])
            seen = _surprise(moved, leaf, leaf.reshape(-1, len(classes)), classes)
            found.append((seen, contrast * seen))
    return tuple(found)


def _surprise(moved: Callable[[Array], Scalar], leaf: Array, sites: Array, values: Array) -> Array:
    """Of every site, its value less the conditional mean of the values that it can have."""

    def one(index: Array, site: Array) -> Array:
        def log_p(value: Array) -> Scalar:
            return moved(sites.at[index].set(value).reshape(leaf.shape))

        return site - jnp.tensordot(jax.nn.softmax(jax.vmap(log_p)(values)), values, axes=1)

    return jax.vmap(one)(jnp.arange(sites.shape[0]), sites)


def _contrast(x: Array) -> Scalar:
    return jnp.vdot(jnp.cos(1.0 + jnp.arange(x.size)), x.reshape(-1).astype(float))
