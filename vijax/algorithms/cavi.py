"""Coordinate ascent variational inference of a conjugate model with global and local latents."""

import functools

import jax
import jax.numpy as jnp

from vijax.algorithms.coordinate import (
    Halves,
    Rate,
    Turn,
    by_statistics,
    check_rate,
    coordinate_ascent,
)
from vijax.families import Kl, need
from vijax.inference import Algorithm, Guide, Model
from vijax.models.traits import Conditionals
from vijax.rows import weight
from vijax.types import Key, Params, PyTree, Q, Scalar


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def cavi(model: Model, guide: Guide, *, num_data: int, rate: Rate | None = None) -> Algorithm:
    """Each step puts q(z_i) of the batch's data at its best given q(w), then each block of q(w) at
    its best given those. Bishop 2006, section 10.1; Blei et al. 2017, algorithm 1.

    On the full data set the ELBO never falls. On minibatches the statistics of the batch's rows are
    exchanged in the total (incremental, Hughes and Sudderth 2013). With a `rate` they are averaged
    over the steps: stochastic VI, Hoffman et al. 2013, algorithm 1, where q(w) moves in its natural
    parameters by that rate if the blocks of w do not look at each other, and which with rate 1 and
    the full data set is CAVI again.

    A step's loss is minus the ELBO between its halves, exact; of a minibatch, scaled by N / B.
    theta stays as it is.

    Args:
      model: with both latents, its `Conditionals` and its prior of w as a family.
      guide: `guides.hierarchical(w=shared(family), z=per_datapoint(family, N))`; with a rate any
        guide of z. `fit` starts at `vijax.Params(theta, guide.init(key), ())`; the blocks of w must
        not be equal there where they are interchangeable.
      num_data: N.
      rate: in (0, 1], or a schedule of the step's number such as `lambda t: (t + 1.0) ** -0.6`.

    Raises:
      ValueError: if the model does not know its conditionals, or q(w) is of another family.
    """
    conditionals = model.traits.get(Conditionals)
    if conditionals is None:
        raise ValueError(
            f"cavi: {Conditionals.refusal}. Give the model its traits=[Conditionals(...)], or "
            "write algorithms.natural_gradient or vijax.descent."
        )
    if set(guide.families) != {"w", "z"} or "w" not in model.priors:
        raise ValueError(
            "cavi is for a hierarchical_model that states its prior of w as a family, with "
            "guides.hierarchical(w=guides.shared(family), z=guides.per_datapoint(family, N))."
        )
    check_rate("cavi", rate, guide)
    prior, family = model.priors["w"], guide.families["w"]
    if prior.family.name != family.name:
        raise ValueError(
            f"cavi: the best q(w) is of the prior's family, {prior.family.name}, but the guide has "
            f"{family.name}. Write guides.shared({prior.family.name})."
        )
    kl = need(family, Kl).value

    def local(key: Key, params: Params, q: Q, x: PyTree) -> PyTree:
        return conditionals.local(params.theta, params.phi["w"], x)

    def loss(key: Key, params: Params, turn: Turn) -> Scalar:
        theta, lam = params.theta, params.phi["w"]

        def bound(own: PyTree, x: PyTree) -> Scalar:
            return conditionals.bound(theta, lam, Q(guide.families["z"], own), x)

        bounds = jax.vmap(bound)(turn.after, turn.batch.x)
        scale = weight(num_data, turn.batch)
        return kl(lam, prior.locate(theta)) - scale * jnp.sum(bounds)

    def move(params: Params, mean: PyTree) -> Params:
        theta, phi = params.theta, params.phi
        return params._replace(
            phi=phi | {"w": conditionals.update(theta, phi["w"], mean, num_data)}
        )

    start, shared = by_statistics(
        guide,
        conditionals.statistics,
        lambda params: conditionals.implied(params.theta, params.phi["w"], num_data),
        move,
        rate=rate,
        num_data=num_data,
    )
    name = f"cavi({family.name}, {'exact' if rate is None else 'rate'})"
    halves = Halves(local, loss, start, shared)
    return coordinate_ascent(name, guide, halves, num_data=num_data, check=model.check)
