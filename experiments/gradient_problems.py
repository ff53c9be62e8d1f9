"""The problems that `experiments.gradient_variance` measures gradients on, and how one comes from a
file.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

import vijax as vj
from experiments import data
from vijax.models import Mlp, bernoulli_pixels


class Problem(NamedTuple):
    """Where gradients are measured.

    Attributes:
      params: theta and phi to start from
      exact: params -> gradient of the ELBO's loss, None if unknown there
      estimators: compared by default
      trainer: its run is the training path; it also measures the reference where nothing is exact
      own: of the problem's author
    """

    model: vj.Model
    guide: vj.Guide
    params: vj.Params
    batch: vj.Batch
    num_data: int
    exact: Callable[[vj.Params], vj.Params | None] | None = None
    estimators: tuple[str, ...] = ("pathwise()", "doubly_reparameterized()", "score()")
    trainer: str = "pathwise()"
    own: Mapping[str, vj.Estimator] = {}


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


def conjugate_normal(table: str) -> Problem:
    """20 data in 2 dimensions, a row of q's parameters per datum; exact gradients."""
    model = vj.models.conjugate_normal(2)
    theta = {"loc": jnp.array([0.5, -0.5]), "log_scale": jnp.zeros(2)}
    _, x = _given(model.simulate)(jax.random.key(0), theta, 20)
    family = vj.families.diag_normal(2)

    def loss(params: vj.Params) -> jax.Array:
        """Minus the sum of log p(x_i) - KL(q_i || posterior_i)."""
        evidence = jax.vmap(lambda x: _given(model.log_evidence)(params.theta, x))(x)
        gap = jax.vmap(
            lambda lam, x: _given(family.kl)(lam, _given(model.posterior)(params.theta, x))
        )(params.phi, x)
        return jnp.sum(gap) - jnp.sum(evidence)

    guide = vj.guides.per_datapoint(family, 20)
    return _problem(model, guide, x, exact=jax.grad(loss), estimators=CONTINUOUS)


def logistic(table: str) -> Problem:
    """Bayesian logistic regression, class 1 against the rest, standardised features and an
    intercept; exact by quadrature.
    """
    loaded: Any = {
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "iris": datasets.load_iris,
        "digits": datasets.load_digits,
    }[table]()
    features = np.asarray(loaded.data, np.float32)
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    features = jnp.asarray(np.column_stack([features, np.ones(len(features))]), jnp.float32)
    x = {"features": features, "label": jnp.asarray(loaded.target == 1, jnp.float32)}
    dim = features.shape[1]
    model, family = vj.models.logistic_regression(dim), vj.families.diag_normal(dim)
    points, weights = np.polynomial.hermite_e.hermegauss(64)

    def loss(params: vj.Params) -> jax.Array:
        """The likelihood of a datum sees w only through one normal number, so one dimension is
        integrated over.
        """
        loc, scale = params.phi["loc"], jnp.exp(params.phi["log_scale"])
        spread = jnp.sqrt(jnp.square(features) @ jnp.square(scale))
        logits = (features @ loc)[:, None] + spread[:, None] * jnp.asarray(points, jnp.float32)[
            None, :
        ]
        log_lik = vj.densities.bernoulli(x["label"][:, None], logits)
        prior = jax.tree.map(jnp.zeros_like, params.phi)
        return _given(family.kl)(params.phi, prior) - jnp.sum(
            log_lik @ jnp.asarray(weights / weights.sum(), jnp.float32)
        )

    return _problem(model, vj.guides.shared(family), x, exact=jax.grad(loss), estimators=CONTINUOUS)


def vae(table: str) -> Problem:
    """A VAE on 50 digits with an encoder; the reference is measured."""
    model, x = _digits_vae()
    guide = vj.guides.amortized(vj.families.diag_normal(4), Mlp((64,), 8), x=x[0])
    names = tuple(name for name in CONTINUOUS if "by_score" not in name)
    return _problem(model, guide, x, estimators=names, trainer="doubly_reparameterized()")


def vae_table(table: str) -> Problem:
    """The same with a row of q's parameters per digit."""
    model, x = _digits_vae()
    guide = vj.guides.per_datapoint(vj.families.diag_normal(4), len(x))
    names = tuple(name for name in CONTINUOUS if "by_score" not in name)
    return _problem(model, guide, x, estimators=names, trainer="doubly_reparameterized()")


def sbn(table: str) -> Problem:
    """A sigmoid belief net with 8 binary latents on 50 digits; exact by enumeration of the 256
    states.
    """
    x = jnp.asarray(data.threshold(data.load("digits").train_x[:50]))
    model, guide = vj.models.sigmoid_belief_net(64, (8,)), vj.models.recognition_net(64, (8,))
    exact = vj.estimator(model, guide, rules=vj.rules.enumerated(), num_data=len(x))

    def gradient(params: vj.Params) -> vj.Params:
        place = params._replace(control={"z": ()})
        state = exact.init(jax.random.key(0), place)
        return jax.jit(exact.estimate)(
            jax.random.key(0), place, state, vj.Batch(x, jnp.arange(len(x)))
        )[0].grads

    return _problem(model, guide, x, exact=gradient, estimators=DISCRETE, trainer="disarm()")


def mixture(table: str) -> Problem:
    """Mixture of factor analysers on standardised iris: a class and a normal factor per flower,
    with rules per block.
    """
    x = np.asarray(datasets.load_iris().data, np.float32)  # pyright: ignore[reportAttributeAccessIssue]
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
    return _problem(model, guide, x, estimators=names, trainer=names[0])


def hierarchical(table: str) -> Problem:
    """A normal mean over normal local latents, 20 data in 2 dimensions; exact gradients of the
    mean-field bound.
    """
    model = vj.models.hierarchical_normal(2)
    _, x = _given(model.simulate)(jax.random.key(0), {"log_scale": jnp.zeros(2)}, 20)
    local = vj.guides.per_datapoint(vj.families.diag_normal(2), len(x))
    guide = vj.guides.hierarchical(w=vj.guides.shared(vj.families.diag_normal(2)), z=local)

    def expected(mean: jax.Array, variance: jax.Array, log_scale: jax.Array) -> jax.Array:
        """E of a normal log density whose argument less its mean has this mean and variance,
        summed.
        """
        return jnp.sum(
            -0.5 * vj.densities.LOG_2PI
            - log_scale
            - 0.5 * (mean**2 + variance) * jnp.exp(-2.0 * log_scale)
        )

    def loss(params: vj.Params) -> jax.Array:
        w, z, log_scale = params.phi["w"], params.phi["z"], params.theta["log_scale"]
        var_w, var_z = jnp.exp(2.0 * w["log_scale"]), jnp.exp(2.0 * z["log_scale"])
        between = expected(
            z["loc"] - w["loc"][None],
            var_z + var_w[None],
            jnp.broadcast_to(log_scale, z["loc"].shape),
        )
        prior = expected(w["loc"], var_w, jnp.zeros_like(var_w))
        return -(
            prior
            + between
            + expected(x - z["loc"], var_z, jnp.zeros_like(var_z))
            + _entropy(w)
            + _entropy(z)
        )

    names = (
        "pathwise()",
        "doubly_reparameterized()",
        "w=pathwise()+z=doubly_reparameterized()",
        "w=pathwise()+z=score()",
        "w=score()+z=pathwise()",
        "w=measure_valued()+z=pathwise()",
        "score()",
    )
    return _problem(model, guide, x, exact=jax.grad(loss), estimators=names)


PROBLEMS: Mapping[str, Callable[[str], Problem]] = {
    make.__name__: make
    for make in (conjugate_normal, logistic, vae, vae_table, sbn, mixture, hierarchical)
}


def from_file(path: str) -> Problem:
    """The problem of a file that defines `problem() -> (model, guide, params, batch,
    exact_gradient_or_None)`.

    The exact gradient is `params -> gradient of the loss`, or its value at the given params alone.
    A function `estimators(model, guide) -> {name: Estimator}` in the file adds its author's own.
    """
    if not Path(path).is_file():
        raise ValueError(f"--problem={path} is neither a file nor one of {', '.join(PROBLEMS)}.")
    spec = importlib.util.spec_from_file_location("problem_of_the_user", path)
    module = importlib.util.module_from_spec(_given(spec))
    _given(_given(spec).loader).exec_module(module)
    if not hasattr(module, "problem"):
        raise ValueError(
            f"{path} defines no problem() -> (model, guide, params, batch, exact_gradient_or_None)."
        )
    model, guide, params, batch, exact = module.problem()
    own = module.estimators(model, guide) if hasattr(module, "estimators") else {}
    function: Any = exact if exact is None or callable(exact) else _only_at(params, exact)
    num_data = guide.num_data or len(batch.index)
    rules = ("pathwise()", "doubly_reparameterized()", "score()", "score(none())")
    return Problem(model, guide, params, batch, num_data, function, rules, "", own)


def _problem(model: vj.Model, guide: vj.Guide, x: Any, **settings: Any) -> Problem:
    """All data in one batch; parameters as initialised."""
    num_data = len(jax.tree.leaves(x)[0])
    keys = jax.random.split(jax.random.key(0))
    params = vj.Params(model.init(keys[0]), guide.init(keys[1]), ())
    return Problem(model, guide, params, vj.Batch(x, jnp.arange(num_data)), num_data, **settings)


def _digits_vae() -> tuple[vj.Model, jax.Array]:
    x = jnp.asarray(data.threshold(data.load("digits").train_x[:50]))
    return vj.models.vae(Mlp((64,), 64), 4, bernoulli_pixels()), x


def _entropy(lam: Any) -> jax.Array:
    return jnp.sum(lam["log_scale"] + 0.5 * (vj.densities.LOG_2PI + 1.0))


def _only_at(params: vj.Params, gradient: vj.Params) -> Callable[[vj.Params], vj.Params | None]:
    """A gradient that is known at these params alone."""

    def exact(where: vj.Params) -> vj.Params | None:
        same = jax.tree.map(
            lambda a, b: bool(jnp.all(a == b)),
            where._replace(control=()),
            params._replace(control=()),
        )
        return gradient if all(jax.tree.leaves(same)) else None

    return exact


def _given(value: Any) -> Any:
    assert value is not None
    return value
