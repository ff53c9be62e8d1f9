"""The rules that `experiments.sbn` compares, and the estimator of a layered net that each makes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

import vijax as vj
from vijax import baselines, rules
from vijax.families import Blocks
from vijax.types import Array


class Choice(NamedTuple):
    """A rule for one layer of Bernoulli latents.

    Attributes:
      make: (family of the layer, one datum) -> rule.
    """

    make: Callable[[vj.Family, Array], vj.Rule]
    num_samples: int = 1


def _network(family: vj.Family, x: Array) -> vj.Rule:
    return rules.score(baselines.learned(vj.models.Mlp((100,), 1), x=x))


RULES: Mapping[str, Choice] = {
    "reinforce": Choice(lambda family, x: rules.score(baselines.moving_average())),
    "nvil": Choice(_network),
    "rloo": Choice(lambda family, x: rules.score(), 2),
    "rloo4": Choice(lambda family, x: rules.score(), 4),
    "arm": Choice(lambda family, x: rules.arm()),
    "disarm": Choice(lambda family, x: rules.disarm()),
    "arms": Choice(lambda family, x: rules.arms(4)),
    "muprop": Choice(lambda family, x: rules.muprop()),
    "rebar": Choice(lambda family, x: rules.rebar()),
    "relax": Choice(lambda family, x: rules.relax(z=vj.families.z_like(family))),
    "double_cv": Choice(lambda family, x: rules.double_control_variates(), 2),
    "rodeo": Choice(lambda family, x: rules.rodeo(), 2),
    "bitflip": Choice(lambda family, x: rules.local_expectation(num_sites=1)),
    "straight_through": Choice(lambda family, x: rules.straight_through()),
}


def estimator(model: vj.Model, guide: vj.Guide, choice: Choice, x: Array) -> vj.Estimator:
    """The ELBO with this rule in every layer; inner layers are followed from every sample of the
    outer one.
    """
    family = guide.families["z"]
    per_layer: Any = choice.make(family, x[0])
    num_samples: Any = choice.num_samples
    layers = family.traits.get(Blocks)
    if layers is not None:
        per_layer = {name: choice.make(layer, x[0]) for name, layer in layers.families.items()}
        num_samples = dict.fromkeys(layers.families, choice.num_samples)
    return vj.estimator(model, guide, rules=per_layer, num_samples=num_samples, num_data=len(x))


def evaluations(choice: Choice, width: int) -> str:
    """Log-joint evaluations per datum and step of one layer, as the rule's metadata says it, and
    the K in it.
    """
    requires = choice.make(vj.families.bernoulli(width), jnp.zeros(1)).requires
    return f"{requires.evaluations}, K = {choice.num_samples}"
