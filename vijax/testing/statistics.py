"""Are a model's sufficient statistics those of its log-joint?"""

import jax

from vijax.inference import Model
from vijax.models.traits import SufficientStatistics
from vijax.testing.averages import assert_agree, assert_close, average, compiled, exactly
from vijax.testing.simulated import DataSet, locals_of
from vijax.types import Array, Family, Key, PyTree, Q

WHAT = "sufficient statistics: the mean over simulated data of E[s(z, x)] under the posterior"


def check_statistics(
    model: Model,
    family: Family | None,
    theta: PyTree,
    place: DataSet,
    key: Key,
    num_draws: int,
    max_z: float,
) -> dict[str, float]:
    """`maximize` makes theta of what theta expects; `statistics` has that mean over simulated data,
    where the posterior is known. Nothing of a model without the trait.

    Args:
      family: of the posterior.
      place: data and latents at which the two thetas must have the same density.
    """
    trait = model.traits.get(SufficientStatistics)
    if trait is None:
        return {}
    expected = compiled(trait.expected, theta)
    again = compiled(lambda mean: trait.maximize(theta, mean), expected)
    assert jax.tree.structure(again) == jax.tree.structure(theta), (
        f"maximize returns {jax.tree.structure(again)}, but theta is {jax.tree.structure(theta)}."
    )
    one, other = (
        compiled(lambda theta: locals_of(model, theta, place.w, place.z, place.x), which)
        for which in (theta, again)
    )
    meaning = "log_local at maximize(theta, expected(theta)), which should be the same theta"
    assert_close(other, one, tolerance=1e-7, what=meaning)
    posterior, simulate = model.posterior, model.simulate
    if posterior is None or simulate is None or family is None:
        return {"statistics": 0.0}

    def each(key: Key) -> PyTree:
        _, x = simulate(key, theta, num_draws)

        def of_one(x: Array) -> PyTree:
            return trait.statistics(Q(family, posterior(theta, x)), x)

        return average(jax.vmap(of_one)(x))

    seen = compiled(each, key)
    return {"statistics": assert_agree(seen, exactly(expected), what=WHAT, max_z=max_z)[1]}
