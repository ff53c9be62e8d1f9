"""The problems that `experiments.gradient_variance` measures gradients on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

import vijax as vj
from experiments.common import data
from experiments.gradient_variance import exact
from experiments.gradient_variance.exact import Exact
from vijax.models import Mlp, bernoulli_pixels

Own = Callable[[int, vj.Objective], Mapping[str, vj.Estimator]]
"""(K, objective) -> the estimators of a problem's author, by name."""


def none_of_its_own(num_samples: int, objective: vj.Objective) -> Mapping[str, vj.Estimator]:
    """No estimators."""
    return {}


class Problem(NamedTuple):
    """Where gradients are measured.

    Attributes:
      batch: data that all gradients are of; fewer than num_data make a minibatch, always the same.
      params: theta and phi to start from.
      exact: the ELBO's gradient, if anything is known of it.
      estimators: compared by default.
      trainer: its run is the training path; it also measures the reference where nothing is exact.
      own: estimators of the problem's author.
    """

    model: vj.Model
    guide: vj.Guide
    params: vj.Params
    batch: vj.Batch
    num_data: int
    exact: Exact | None = None
    estimators: tuple[str, ...] = ("pathwise()", "doubly_reparameterized()", "score()")
    trainer: str = "pathwise()"
    own: Own = none_of_its_own


TABLES = {
    "breast_cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "iris": datasets.load_iris,
    "digits": datasets.load_digits,
}
CONTINUOUS = (
    "pathwise()",
    "doubly_reparameterized()",
    "fitted_score_term()",
    "quadratic_control()",
    "quadratic_control(carrier=by_score)",
    "measure_valued()",
    "score()",
    "score(moving_average())",
    "score(none())",
)
DISCRETE = (
    "score()",
    "disarm()",
    "arms(4)",
    "local_expectation(num_sites=1)",
    "muprop()",
    "rebar()",
    "relax(z=...)",
    "double_control_variates()",
    "rodeo()",
    "score(moving_average())",
    "straight_through()",
)


def conjugate_normal() -> Problem:
    """20 data in 2 dimensions, a row of q's parameters per datum; exact gradients."""
    model, family = vj.models.conjugate_normal(2), vj.families.diag_normal(2)
    theta = {"loc": jnp.array([0.5, -0.5]), "log_scale": jnp.zeros(2)}
    x = _simulated(model, theta)
    guide = vj.guides.per_datapoint(family, len(x))
    known = exact.conjugate(model, family, x)
    return _problem(model, guide, x)._replace(exact=known, estimators=CONTINUOUS)


def logistic(table: str = "breast_cancer") -> Problem:
    """Bayesian logistic regression, class 1 against the rest, standardised features and an
    intercept; exact by quadrature.
    """
    loaded: Any = TABLES[table]()
    features = np.asarray(loaded.data, np.float32)
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    features = jnp.asarray(np.column_stack([features, np.ones(len(features))]), jnp.float32)
    x = {"features": features, "label": jnp.asarray(loaded.target == 1, jnp.float32)}
    dim = features.shape[1]
    model, family = vj.models.logistic_regression(dim), vj.families.diag_normal(dim)
    guide, known = vj.guides.shared(family), exact.logistic(family, features, x["label"])
    return _problem(model, guide, x)._replace(exact=known, estimators=CONTINUOUS)


def vae() -> Problem:
    """A VAE on 50 digits with an encoder; the reference is measured."""
    model, x = _digits_vae()
    guide = vj.guides.amortized(vj.families.diag_normal(4), Mlp((64,), 8), x=x[0])
    names = tuple(name for name in CONTINUOUS if "by_score" not in name)
    return _problem(model, guide, x)._replace(estimators=names, trainer="doubly_reparameterized()")


def vae_table() -> Problem:
    """The same with a row of q's parameters per digit."""
    model, x = _digits_vae()
    guide = vj.guides.per_datapoint(vj.families.diag_normal(4), len(x))
    names = tuple(name for name in CONTINUOUS if "by_score" not in name)
    return _problem(model, guide, x)._replace(estimators=names, trainer="doubly_reparameterized()")


def sbn() -> Problem:
    """A sigmoid belief net with 8 binary latents on 50 digits; exact by enumeration of the 256
    states.
    """
    x = jnp.asarray(data.threshold(data.load("digits").train_x[:50]))
    model, guide = vj.models.sigmoid_belief_net(64, (8,)), vj.models.recognition_net(64, (8,))
    known = exact.enumerated(model, guide, x)
    return _problem(model, guide, x)._replace(exact=known, estimators=DISCRETE, trainer="disarm()")


def mixture() -> Problem:
    """Mixture of factor analysers on standardised iris: a class and a normal factor per flower,
    with rules per block.
    """
    loaded: Any = datasets.load_iris()
    x = np.asarray(loaded.data, np.float32)
    x = jnp.asarray((x - x.mean(axis=0)) / x.std(axis=0))
    model = vj.models.mixture_of_factor_analyzers(3, 4, 1)
    family = vj.families.product(c=vj.families.categorical(3), z=vj.families.diag_normal(1))
    guide = vj.guides.per_datapoint(family, len(x))
    names = (
        "c=enumerated()+z=pathwise()",
        "c=score()+z=pathwise()",
        "c=disarm_tree()+z=pathwise()",
        "c=unordered_set()+z=pathwise()",
        "c=reinmax()+z=pathwise()",
        "score()",
        "score_per_block()",
        "score(none())",
    )
    return _problem(model, guide, x)._replace(estimators=names, trainer=names[0])


def hierarchical() -> Problem:
    """A normal mean over normal local latents, 20 data in 2 dimensions; exact gradients of the
    mean-field bound.
    """
    model = vj.models.hierarchical_normal(2)
    x = _simulated(model, {"log_scale": jnp.zeros(2)})
    local = vj.guides.per_datapoint(vj.families.diag_normal(2), len(x))
    guide = vj.guides.hierarchical(w=vj.guides.shared(vj.families.diag_normal(2)), z=local)
    names = (
        "pathwise()",
        "doubly_reparameterized()",
        "w=pathwise()+z=doubly_reparameterized()",
        "w=pathwise()+z=score()",
        "w=score()+z=pathwise()",
        "w=measure_valued()+z=pathwise()",
        "score()",
    )
    return _problem(model, guide, x)._replace(exact=exact.hierarchical(x), estimators=names)


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    make.__name__: make
    for make in (conjugate_normal, logistic, vae, vae_table, sbn, mixture, hierarchical)
}


def _problem(model: vj.Model, guide: vj.Guide, x: Any) -> Problem:
    """All data in one batch; parameters as initialised."""
    num_data = len(jax.tree.leaves(x)[0])
    keys = jax.random.split(jax.random.key(0))
    params = vj.Params(model.init(keys[0]), guide.init(keys[1]), ())
    return Problem(model, guide, params, vj.Batch(x, jnp.arange(num_data)), num_data)


def _digits_vae() -> tuple[vj.Model, jax.Array]:
    x = jnp.asarray(data.threshold(data.load("digits").train_x[:50]))
    return vj.models.vae(Mlp((64,), 64), 4, bernoulli_pixels()), x


def _simulated(model: vj.Model, theta: Any) -> jax.Array:
    """20 data of the model."""
    assert model.simulate is not None
    return model.simulate(jax.random.key(0), theta, 20)[1]
