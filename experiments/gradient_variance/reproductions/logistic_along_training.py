"""Which gradient estimator has the least variance along the training of a Bayesian logistic
regression?

Breast cancer data (569 tumours, 30 standardised features and an intercept), mean-field normal q,
full data, two samples per gradient; variances at points of one run of Adam with the pathwise
gradient (Mohamed, Rosca, Figurnov and Mnih 2020, section 8.3). Published are orderings: pathwise
and measure-valued gradients lie far below the score function's, and the delta-method control
variate, a second-order expansion of the log-joint at q's mean, helps the score function once q is
narrow.

Expect pathwise and measure-valued at least a decade below the score function everywhere, and the
control variate to win a decade or more late in training, and more than at the start. Half a minute
on two cores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

import vijax as vj
from experiments.common import figures
from experiments.common.harness import Outcome
from experiments.gradient_variance.figures import VARIANCE
from experiments.gradient_variance.reproductions import claims
from vijax import lab
from vijax.types import Key

SOURCE = "Mohamed et al. 2020, section 8"
RULES = {
    "score": vj.rules.score(vj.baselines.none()),
    "score, leave-one-out": vj.rules.score(),
    "score, delta method": vj.rules.quadratic_control(carrier=vj.rules.by_score),
    "pathwise": vj.rules.pathwise(),
    "measure-valued": vj.rules.measure_valued(),
}
FEW = ("score", "score, delta method", "pathwise", "measure-valued")  # what claims speak of
CHUNK = 20  # steps between which the path can be seen


def breast_cancer(num_features: int) -> dict[str, jax.Array]:
    """The table with its first features, standardised, and a column of ones."""
    features, label = load_breast_cancer(return_X_y=True)
    features = np.asarray(features)[:, :num_features]
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    features = np.column_stack([features, np.ones(len(features))])
    return {
        "features": jnp.asarray(features, jnp.float32),
        "label": jnp.asarray(label, jnp.float32),
    }


def training_path(
    key: Key, estimator: vj.Estimator, data: Any, steps: tuple[int, ...]
) -> dict[int, vj.Params]:
    """Step -> params of one run, at these multiples of CHUNK."""
    start = estimator.init_params(key)
    seen = {0: start}
    vj.fit(
        key,
        vj.descent(estimator, optax.adam(0.05)),
        start,
        data,
        num_steps=max(steps),
        chunk_size=CHUNK,
        record_every=CHUNK,
        callbacks=[lambda progress: seen.update({progress.step: progress.params})],
    )
    return {step: seen[step] for step in (0, *steps)}


def run(key: Key, *, smoke: bool) -> Outcome:
    """Variances of every rule along one path."""
    num_features, steps, num_draws = (
        (2, (100,), 200) if smoke else (30, (20, 60, 140, 300, 600), 1_000)
    )
    data = breast_cancer(num_features)
    num_data = len(data["label"])
    model, guide = (
        vj.models.logistic_regression(num_features + 1),
        vj.guides.shared(vj.families.diag_normal(num_features + 1)),
    )
    chosen = {name: rule for name, rule in RULES.items() if not smoke or name in FEW}
    made = {
        name: vj.estimator(model, guide, rules=rule, num_samples=2, num_data=num_data)
        for name, rule in chosen.items()
    }
    path_key, draw_key = jax.random.split(key)
    path = training_path(path_key, made["pathwise"], data, steps)
    compared = lab.along(
        draw_key, made, path, vj.Batch(data, jnp.arange(num_data)), num_draws=num_draws
    )
    return Outcome(
        {"claims": _claims(compared), "num_draws": num_draws}, claims.columns("along", compared)
    )


def _claims(compared: lab.Comparison) -> list[dict]:
    """Orderings: log10 of ratios of variances, at the point that speaks least for the claim."""
    rows = []
    for name in ("pathwise", "measure-valued"):
        ratio, error = claims.log_ratios(compared, name, "score")
        i = int(np.argmax(ratio + claims.HALF_WIDTH * error))
        what = f"log10 Var[{name}] / Var[score], where it is largest"
        rows.append(claims.below(what, "decades below", ratio[i], error[i], SOURCE, than=-1.0))
    ratio, error = claims.log_ratios(compared, "score, delta method", "score")
    rows.append(
        claims.below(
            "log10 Var[score, delta] / Var[score], at the end",
            "below",
            ratio[-1],
            error[-1],
            SOURCE,
        )
    )
    gain, gain_error = ratio[-1] - ratio[0], float(np.hypot(error[-1], error[0]))
    rows.append(
        claims.below("the same, end less start of training", "helps late", gain, gain_error, SOURCE)
    )
    return rows


def plot(metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """Variance of phi's gradient along the run, with 95 % intervals."""
    figure, axes = figures.new(6.6, 3.6)
    colours = dict(zip(RULES, ("#D55E00", "#CC79A7", "#E69F00", "#0072B2", "#009E73"), strict=True))
    for name in dict.fromkeys(arrays["along/estimator"].tolist()):
        here = arrays["along/estimator"] == name
        error = claims.HALF_WIDTH * arrays["along/variance_error"][here]
        hollow: dict[str, Any] = (
            {"markerfacecolor": "none", "markersize": 7}
            if name == "measure-valued"
            else {"markersize": 3.5}
        )
        axes.errorbar(
            arrays["along/at"][here],
            arrays["along/variance"][here],
            error,
            fmt="o-",
            capsize=2,
            color=colours[name],
            label=name,
            linewidth=1.2,
            **hollow,
        )
    axes.set(xlabel="step of the pathwise run", ylabel=VARIANCE, yscale="log")
    axes.set_title(
        f"logistic regression, breast cancer, N = 569, ELBO, K = 2\n{metrics['num_draws']} draws; "
        "bars: 95 % intervals",
        fontsize=9,
    )
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return [figures.save(figure, folder, "logistic_along_training")]
