"""Does a family keep what it promises? One call."""

import itertools
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from vijax import supports
from vijax.families import Density, FiniteSupport, lam_like, log_probs, transports, z_like
from vijax.shapes import same_shapes
from vijax.testing.averages import assert_agree, assert_close, compiled, in_float, quickly
from vijax.testing.coverage import inside
from vijax.testing.law import Quadrature
from vijax.testing.properties import pairs_of
from vijax.testing.traits import Function
from vijax.types import Family, Key, PyTree, Support

TRAIT = "The formula of the trait is wrong, or that of log_prob"
PROPERTIES = {
    "support": ("draws lie in the stated support", "State the set that z really lives in"),
    "log_q": (
        "transport's log q is log_prob at its z",
        "One of the two densities lacks a term, such as the log-determinant of a map",
    ),
    "log_q_slope": (
        "d/dlam of transport's log q is that of log_prob(lam, z(lam))",
        "Something is stopped or left out in one of the two densities",
    ),
    "mass": (
        "exp(log_prob) sums to 1",
        "The normaliser is wrong, or the support: it is larger or smaller than stated",
    ),
    "score": (
        "E_q[dlog q / dlam] = 0",
        "The normaliser is wrong as a function of lam, the sampler draws from another law, or the "
        "support moves with lam: then it is supports.moving(), and no rule takes the family",
    ),
    "sampler": (
        "draws have the moments that log_prob says",
        "The sampler and log_prob disagree about lam, as in a scale for a variance",
    ),
    "uniform": ("UniformNoise makes the same law", "from_uniform is not the inverse CDF"),
    "reparameterized": (
        "the gradient through the sampler is that of the expectation",
        "The path from lam to z is cut or jumps: leave out Reparameterized(), or correct sample",
    ),
    "entropy": ("Entropy.value is E_q[-log q]", TRAIT),
    "entropy_slope": ("the gradient of Entropy.value is that of E_q[-log q]", TRAIT),
    "kl": ("Kl.value is E_q[log q - log q2]", TRAIT),
    "kl_slope": ("the gradient of Kl.value in the first lam is right", TRAIT),
    "kl_slope_2": ("the gradient of Kl.value in the second lam is right", TRAIT),
    "own_kl": ("Kl.value vanishes between equals, and is stationary there", TRAIT),
    "mean": ("Moments.mean is E_q[z]", TRAIT),
    "variance": ("Moments.variance is Var_q[z]", TRAIT),
    "natural": ("a Natural step of rate 1 down KL(q || q2) ends in q2", TRAIT),
    "natural_line": ("a Natural step moves on the line between natural parameters", TRAIT),
    "BernoulliSites": ("the mean of z is sigmoid(logits)", TRAIT),
    "CategoricalSites": ("the mean of z is softmax(logits)", TRAIT),
    "GammaSites": ("mean and variance of z are shape / rate and shape / rate^2", TRAIT),
    "NormalMoments": ("z has that mean and covariance", TRAIT),
    "Blocks": ("log_prob is the sum of the blocks'", TRAIT),
    "Pushforward": ("log_prob is the base family's less the log-determinant", TRAIT),
    "inverse": ("Inverse.noise finds the noise behind a draw", TRAIT),
    "pairs": ("WeakDerivative's pairs differentiate an expectation", TRAIT),
}
"""{name: (what must hold, what it usually means if it does not)}."""


def check_family(
    family: Family,
    *,
    key: Key | None = None,
    lams: Sequence[PyTree] | None = None,
    integrand: Function | None = None,
    quadrature: Quadrature | None = None,
    num_draws: int = 20_000,
    max_z: float = 5.0,
    rounding: float = 1e-9,
    without: Collection[str] = (),
) -> dict[str, float]:
    """Everything that a family promises: its density, its sampler, and each of its traits against
    its meaning, in float64; that float32, jit and vmap change nothing.

    Averages are over draws and must agree within `max_z` standard errors; a finite support is
    summed. A family whose density is known only at its own draws is checked for its support alone.

    Args:
      key: of the draws; default `jax.random.key(0)`.
      lams: where to look, lams of one datum; default two random ones around `init`. KL divergences
        are from each to the next.
      integrand: z -> [], whose expectation the gradients are of; default bounded waves of z, which
        see little of a z much larger than 10.
      quadrature: lam -> (z, weights), for expectations exact to `rounding`, where you have one.
      num_draws: S.
      max_z: what counts as different.
      rounding: relative error that exact figures may have.
      without: names of `PROPERTIES` to leave out, such as "pairs" where they have no variance.

    Returns:
      {property: its largest difference in standard errors}.

    Raises:
      AssertionError: what does not hold, by how much, and what that usually means.
    """
    key = jax.random.key(0) if key is None else key
    f = waves if integrand is None else integrand
    _check_shapes(family)
    found: dict[str, float] = {}
    with in_float(64):
        places = _places(family, lams)
        _check_values(family)
        _check_precision(family, key, places[0])
        program = None
        for number, (lam, other) in enumerate(itertools.pairwise(places)):
            if program is None:
                program = quickly(pairs_of(family, f, quadrature, num_draws), key, lam, other)
            seen = jax.device_get(program(key, lam, other))
            for name in [name for name in PROPERTIES if name in seen and name not in without]:
                holds, meaning = PROPERTIES[name]
                _, z = assert_agree(
                    *seen[name],
                    what=f"{family.name}, lams[{number}]: not so that {holds}",
                    meaning=f"{meaning}.",
                    max_z=max_z,
                    rounding=rounding,
                )
                found[name] = max(z, found.get(name, 0.0))
    return found


def waves(z: PyTree) -> jax.Array:
    """A bounded, smooth function of any z in which elements act together; periodic in angles."""
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(z)])
    first = jnp.cos(1.0 + jnp.arange(flat.size))
    return jnp.vdot(first, jnp.sin(flat)) + 0.5 * jnp.square(jnp.vdot(first[::-1], jnp.cos(flat)))


def _check_shapes(family: Family) -> None:
    parts = {"is_leaf": lambda part: isinstance(part, Support)}
    stated, drawn = jax.tree.structure(unfreeze(family.support), **parts), z_like(family)
    assert stated == jax.tree.structure(drawn), (
        f"{family.name}: the support is a tree {stated}, but z one of {jax.tree.structure(drawn)}"
    )
    for part, leaf in zip(supports.parts(family.support), jax.tree.leaves(drawn), strict=True):
        assert part.name == "moving" or part.shape == leaf.shape, (
            f"{family.name}: the support {part.name} has shape {part.shape}, but z {leaf.shape}: "
            "give one sample of one datum, and its shape to the support."
        )
        assert jnp.issubdtype(leaf.dtype, jnp.floating), (
            f"{family.name}: z is {leaf.dtype}: draw floats, as in .astype(float)."
        )


def _places(family: Family, lams: Sequence[PyTree] | None) -> list[PyTree]:
    """The lams to look at and, last, one more to measure KL divergences to, in float64."""
    random = np.random.default_rng(0)

    def near(lam: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf + 0.4 * random.normal(size=np.shape(leaf)), lam)

    given = list(lams or ())
    for lam in given:
        same_shapes(lam, lam_like(family), f"one of lams, for {family.name},")
    start = family.init(jax.random.key(1))
    found = given or [near(start), near(start)]
    found = [*found, found[0] if len(found) > 1 else near(found[0])]
    dtype = jnp.result_type(float)
    return [jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), lam) for lam in found]


def _check_values(family: Family) -> None:
    """FiniteSupport has every value once."""
    if finite := family.traits.get(FiniteSupport):
        leaves = jax.tree.leaves(finite.values())
        flat = np.concatenate([leaf.reshape(finite.size, -1) for leaf in leaves], axis=1)
        assert len(np.unique(flat, axis=0)) == finite.size, (
            f"{family.name}: FiniteSupport has a value twice."
        )


def _check_precision(family: Family, key: Key, lam: PyTree) -> None:
    """One sample alone, a vmap, and an eager call in float64 say the same of float32 draws."""
    known = family.traits.get(Density) is not None

    def both(lam: PyTree, noise: PyTree) -> tuple[PyTree, PyTree, jax.Array]:
        many = transports(family, lam, noise)
        one = family.transport(lam, jax.tree.map(lambda leaf: leaf[1], noise))
        return many, one, log_probs(family, lam, many[0]) if known else many[1]

    with in_float(32):
        small = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), lam)
        many, one, densities = compiled(both, small, family.noise(key, 4))
        same = jax.tree.map(lambda leaf: leaf[1], many)
        what = f"{family.name}: transport of one sample against vmap"
        assert_close(one, same, tolerance=1e-4, what=what)
    parts = zip(supports.parts(family.support), jax.tree.leaves(many[0]), strict=True)
    holds, meaning = PROPERTIES["support"]
    within = all(bool(inside(part, leaf)) for part, leaf in parts)
    assert within, f"{family.name}: not so that {holds}: {meaning}."
    if known:
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), (small, same[0]))
        exact = family.log_prob(*wide)
        what = f"{family.name}: compiled log_prob in float32 against an eager call in float64"
        assert_close(densities[1], exact, tolerance=1e-3, what=what)
