"""Where the randomness of K samples comes from: a plug for every rule that differentiates through
the sampler.

`pathwise(noise=antithetic())`, `doubly_reparameterized(noise=sobol())`. Each sample alone has the
law of q; the plugs differ in how the K samples depend on each other. For the ELBO, every plug but
`fixed` therefore leaves the expected gradient as it is; for a non-linear objective, dependent
samples have a bound of their own, which `pathwise` then ascends.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import UniformNoise
from vijax.types import Array, Family, Key, PyTree

BITS = 32


class Noise(NamedTuple):
    """How the noise of K samples is drawn together.

    Attributes:
      draw: -> noise of K samples, leaves [K, ...], for `family.transport`
      check: raises ValueError if it cannot
      independent: are the samples independent of each other?
      unbiased: has each sample the law of q, afresh at each step?
    """

    name: str
    draw: Callable[[Key, Family, int], PyTree]
    check: Callable[[Family, int], None] = lambda family, num_samples: None
    independent: bool = True
    unbiased: bool = True


IID = Noise("iid()", lambda key, family, num_samples: family.noise(key, num_samples))


def iid() -> Noise:
    """Independent samples, the default: exactly what `family.noise` gives."""
    return IID


def antithetic() -> Noise:
    """K/2 independent samples and their mirror images in quantile space, u and 1 - u. Wu et al.
    2019; Ren et al. 2019.

    For a normal q the mirror image of the noise e is -e: odd parts of the integrand, such as the
    linear term, cancel exactly.

    Raises:
      ValueError: when checked, if K is odd.
    """

    def points(key: Key, num_samples: int, num_uniforms: int) -> Array:
        half = to_unit(jax.random.bits(key, (num_samples // 2, num_uniforms), jnp.uint32))
        # Exact: the grid of `to_unit` is symmetric about 1/2
        return jnp.concatenate([half, 1.0 - half])

    def check(family: Family, num_samples: int) -> None:
        if num_samples % 2:
            raise ValueError(
                f"antithetic(): num_samples={num_samples} is odd, but samples come in pairs. Make "
                f"it even."
            )

    return from_points("antithetic()", points, check)


def sobol() -> Noise:
    """Randomised quasi-Monte Carlo: a Sobol' sequence, scrambled afresh at each draw. Buchholz et
    al. 2018.

    The scrambling is a random lower triangular matrix of bits per dimension and a random digital
    shift (Matousek 1998): every point is uniform, so nothing is biased, and the variance of a
    smooth integrand's mean falls like K^-3 up to logarithms. Best with K a power of two. With K = 1
    it is `iid` in law. Up to 21,201 uniform numbers per sample (Joe and Kuo 2008).
    """

    def points(key: Key, num_samples: int, num_uniforms: int) -> Array:
        matrix_key, shift_key = jax.random.split(key)
        num_digits = max(1, (num_samples - 1).bit_length())
        directions = jnp.asarray(sobol_directions(num_uniforms, num_digits))  # [D, digits]
        scrambled = scramble(matrix_key, directions)
        index = np.arange(num_samples, dtype=np.uint32)
        digits = (index[:, None] >> np.arange(num_digits, dtype=np.uint32)) & 1  # [K, digits]
        # Multiplying by 0 or 1 keeps or drops a direction; the fold over digits is the product in
        # the field of two elements.
        kept = jnp.asarray(digits)[:, None, :] * scrambled[None, :, :]
        bits = jax.lax.reduce(kept, np.uint32(0), jax.lax.bitwise_xor, (2,))
        return to_unit(bits ^ jax.random.bits(shift_key, (1, num_uniforms), jnp.uint32))

    return from_points("sobol()", points)


def fixed(key: Key, noise: Noise = IID) -> Noise:
    """The same draws at every step, and for every datum: the sample-average approximation. Giordano
    et al. 2024.

    Biased for the expectation: the bound becomes a deterministic function with its own optimum, off
    by order K^-1/2. Optimise it with any deterministic method, and judge the result by fresh draws:
    with few samples its loss is too good.

    Args:
      key: which draws; kept for good.
      noise: how they are drawn.
    """

    def draw(step_key: Key, family: Family, num_samples: int) -> PyTree:
        return noise.draw(key, family, num_samples)

    return Noise(f"fixed({noise.name})", draw, noise.check, independent=False, unbiased=False)


def from_points(
    name: str,
    points: Callable[[Key, int, int], Array],
    check: Callable[[Family, int], None] = lambda family, num_samples: None,
) -> Noise:
    """A plug from any way of placing K points in the unit cube.

    Args:
      points: (key, K, U) -> [K, U] in (0, 1), each row uniform on the cube.
      check: raises ValueError if it cannot.
    """

    def draw(key: Key, family: Family, num_samples: int) -> PyTree:
        uniform = _uniform_noise(name, family)
        return jax.vmap(uniform.from_uniform)(points(key, num_samples, uniform.num_uniforms))

    def check_both(family: Family, num_samples: int) -> None:
        _uniform_noise(name, family)
        check(family, num_samples)

    return Noise(name, draw, check_both, independent=False)


def to_unit(bits: Array) -> Array:
    """Uniform numbers strictly inside (0, 1) from random uint32 words; a grid symmetric about 1/2,
    exactly so in floats.
    """
    dtype = jnp.result_type(float)
    kept = min(jnp.finfo(dtype).nmant, BITS)
    return ((bits >> (BITS - kept)).astype(dtype) + 0.5) * 2.0**-kept


def scramble(key: Key, directions: Array) -> Array:
    """Multiply the bits of every direction number [D, J] by a random lower triangular matrix of
    bits per dimension.
    """
    num_uniforms = directions.shape[0]
    # [32] one bit each, most significant first
    place = np.uint32(1) << np.arange(BITS - 1, -1, -1, dtype=np.uint32)
    above = ~(place | (place - np.uint32(1)))  # [32] the bits more significant than it
    rows = (
        jax.random.bits(key, (num_uniforms, 1, BITS), jnp.uint32) & above[None, None, :]
        | place[None, None, :]
    )
    parity = jax.lax.population_count(rows & directions[:, :, None]) & 1  # [D, J, 32]
    return jax.lax.reduce(parity * place[None, None, :], np.uint32(0), jax.lax.bitwise_or, (2,))


@functools.cache
def sobol_directions(num_uniforms: int, num_digits: int) -> np.ndarray:
    """[D, J] uint32 direction numbers of Joe and Kuo 2008, digit j of the index selecting
    column j.
    """
    from scipy.stats import qmc  # here, because importing it takes longer than importing all else

    engine = qmc.Sobol(num_uniforms, scramble=False, bits=BITS)
    # In Gray-code order the point whose code is the single digit j has index 2^(j + 1) - 1.
    columns, position = [], 0
    for digit in range(num_digits):
        target = 2 ** (digit + 1) - 1
        engine.fast_forward(target - position)
        columns.append(engine.random(1)[0])
        position = target + 1
    return (np.stack(columns, axis=1) * 2.0**BITS).astype(np.uint32)


def _uniform_noise(name: str, family: Family) -> UniformNoise:
    found = family.traits.get(UniformNoise)
    if found is None:
        raise ValueError(
            f"{name} on {family.name}: {UniformNoise.refusal}. Write noise=iid(), or rules per "
            "block, so that only the blocks that have one use this noise."
        )
    return found
