"""How does the variance of the path derivative fall as q approaches the posterior?

q = N(m, s^2) on a posterior N(mu, S^2) (Roeder, Wu and Duvenaud 2017). The total gradient
("pathwise") keeps its variance, the path derivative ("sticking the landing",
`doubly_reparameterized` with one sample) loses it:

Var_m[total] = s^2/S^4, Var_m[path] = (1/s - s/S^2)^2, equal where s^2 = S^2/2; the path's is the
smaller beyond.

At distance eps, m = mu + S eps and s = S exp(eps): expect the total's variance of (m, log s) to
tend to 1/S^2 + 2, the path's to 0 as eps^2, and the ratio in m to cross 1 at s^2 = S^2/2. A few
seconds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

import vijax as vj
from experiments.common import figures
from experiments.common.harness import Outcome
from experiments.gradient_variance.reproductions import claims
from vijax import lab
from vijax.lab.report import ROUNDING
from vijax.types import Array, Key, PyTree, Scalar

MU, S = 0.7, 1.3  # of the posterior
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0)  # s^2 / S^2
FEW = 0.01  # below which eps is small: where the slope is taken
SOURCE, IDENTITY = "Roeder et al. 2017", "closed form"


def closed_forms(m: np.ndarray, s: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> variances of the gradients in m and in log s."""
    shift = (m - MU) * s / S**2  # what of log s's gradient is linear in the noise
    return {
        "total": (s**2 / S**4 + 0 * m, shift**2 + 2 * s**4 / S**4),
        "path": ((1 / s - s / S**2) ** 2 + 0 * m, shift**2 + 2 * (1 - s**2 / S**2) ** 2),
    }


def _log_joint(theta: PyTree, z: Array, x: PyTree) -> Scalar:
    return jnp.sum(vj.densities.normal(z, MU, jnp.log(S)))


def _point(phi: PyTree, x: float, made: Mapping[str, vj.Estimator]) -> lab.Point:
    batch = vj.Batch(jnp.full(1, x, jnp.float32), jnp.arange(1))
    return lab.Point(made, vj.Params((), {"z": phi}, ()), batch)


def _estimators(guide: vj.Guide) -> dict[str, vj.Estimator]:
    model = vj.models.latent_model(lambda key: (), _log_joint)
    rules = {"total": vj.rules.pathwise(), "path": vj.rules.doubly_reparameterized()}
    return {
        name: vj.estimator(model, guide, rules=rule, num_data=1) for name, rule in rules.items()
    }


def run(key: Key, *, smoke: bool) -> Outcome:
    """One sweep towards the posterior, one through the scales of q."""
    num_draws = 1_000 if smoke else 20_000
    distance = np.asarray([0.3, 0.01, 0.001]) if smoke else np.geomspace(1.0, 1e-4, 13)
    share = np.asarray([0.25, 0.5, 1.0]) if smoke else np.asarray(SHARES)
    family = vj.families.diag_normal(1)
    both = vj.guides.per_datapoint(family, 1)
    made = _estimators(both)

    def at(eps: float) -> lab.Point:
        phi = {
            "loc": jnp.full((1, 1), MU + S * eps),
            "log_scale": jnp.full((1, 1), np.log(S) + eps),
        }
        return _point(phi, 0.0, made)

    # In the second sweep phi is m alone: s comes with the datum.
    mean_only = vj.guides.amortized(
        family,
        (lambda key: {"loc": jnp.zeros(1)}, lambda phi, s: phi | {"log_scale": jnp.log(s)[None]}),
    )
    made_mean = _estimators(mean_only)

    def scaled(share: float) -> lab.Point:
        return _point({"loc": jnp.full(1, MU)}, S * share**0.5, made_mean)

    landing = lab.sweep(key, [*distance, 0.0], at, num_draws=num_draws)
    scales = lab.sweep(key, share, scaled, num_draws=num_draws)
    rows = [*_landing_claims(landing), *_crossing_claims(scales, share)]
    arrays = claims.columns("landing", landing) | claims.columns("scales", scales)
    return Outcome(
        {"claims": rows, "posterior": {"mean": MU, "scale": S}, "num_draws": num_draws}, arrays
    )


def _landing_claims(landing: lab.Comparison) -> list[dict]:
    exact = closed_forms(MU + S * landing.at, S * np.exp(landing.at))
    rows = []
    for name in ("total", "path"):
        here = landing.estimator == name
        known = np.sum(exact[name], axis=0)[here]
        largest = np.maximum(np.sum(exact["total"], axis=0)[here], 1.0)
        noise = ROUNDING * largest  # float32: of terms that cancel in the path derivative
        error = np.hypot(landing.variance_error[here], noise**2 + 2.0 * noise * np.sqrt(known))
        end = np.flatnonzero(landing.at[here] == 0.0)
        what = f"Var[{name}], worst of {len(known)} points"
        rows += [
            claims.worst(what, known, landing.variance[here], error, IDENTITY),
            claims.worst(
                f"Var[{name}] at the posterior",
                known[end],
                landing.variance[here][end],
                error[end],
                SOURCE,
            ),
        ]
    near = (landing.at <= FEW) & (landing.at > 0.0)
    found = lab.slopes(lab.Comparison(*(column[near] for column in landing)), "variance")
    for name, expected in (("total", 0.0), ("path", 2.0)):
        row = np.flatnonzero(found.estimator == name)[0]
        error = (found.high[row] - found.low[row]) / (2.0 * claims.HALF_WIDTH)
        rows.append(
            claims.claim(
                f"slope of log Var[{name}] in log eps", expected, found.slope[row], error, SOURCE
            )
        )
    return rows


def _crossing_claims(scales: lab.Comparison, share: np.ndarray) -> list[dict]:
    path = scales.estimator == "path"
    error = scales.variance_error / scales.variance
    error = np.hypot(error[path], error[~path]) * scales.ratio[path]
    rows = []
    exact = closed_forms(np.asarray(MU), S * np.sqrt(share))
    for name, here in (("total", ~path), ("path", path)):
        noise = ROUNDING * (exact["total"][0] + exact[name][0])
        away = np.hypot(scales.variance_error[here], noise)
        rows.append(
            claims.worst(
                f"Var_m[{name}], worst of {len(share)} scales",
                exact[name][0],
                scales.variance[here],
                away,
                IDENTITY,
            )
        )
    ratio = scales.ratio[path]
    (middle,) = np.flatnonzero(share == 0.5)
    rows.append(
        claims.claim(
            "Var_m[path] / Var_m[total] at s^2 = S^2/2", 1.0, ratio[middle], error[middle], IDENTITY
        )
    )
    for side, words in (
        (share < 0.5, "above 1 where s^2 < S^2/2"),
        (share > 0.5, "below 1 where s^2 > S^2/2"),
    ):
        sign = 1.0 if words.startswith("above") else -1.0
        margin = sign * (ratio - 1.0) - claims.HALF_WIDTH * error
        least = np.flatnonzero(side)[np.argmin(margin[side])]
        rows.append(
            claims.claim(
                f"the same at s^2 = {share[least]:g} S^2",
                words,
                ratio[least],
                error[least],
                IDENTITY,
                agrees=bool(np.all(margin[side] > 0.0)),
            )
        )
    return rows


def plot(metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """Left: variance against the distance. Right: ratio in m against the scale. Lines: closed
    forms.
    """
    with figures.plt.rc_context(figures.STYLE):
        figure, (left, right) = figures.plt.subplots(1, 2, figsize=(8.4, 3.4))
    _plot_landing(left, arrays)
    _plot_crossing(right, arrays)
    figure.suptitle(
        "one normal datum, ELBO, K = 1; bars: 95 % intervals, lines: closed forms", fontsize=9
    )
    return [figures.save(figure, folder, "sticking_the_landing")]


def _plot_landing(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    names, at = arrays["landing/estimator"], arrays["landing/at"]
    eps = np.geomspace(at[at > 0.0].min(), at.max(), 200)
    exact = closed_forms(MU + S * eps, S * np.exp(eps))
    labels = {"total": "total gradient", "path": "path derivative"}
    for name, colour in (("total", figures.TEST), ("path", figures.TRAIN)):
        here = (names == name) & (at > 0.0)
        axes.errorbar(
            at[here],
            arrays["landing/variance"][here],
            claims.HALF_WIDTH * arrays["landing/variance_error"][here],
            fmt="o",
            markersize=3.5,
            capsize=2,
            color=colour,
            label=labels[name],
        )
        axes.plot(eps, np.sum(exact[name], axis=0), color=colour, linewidth=1.0)
    axes.set(
        xlabel="distance from the posterior, eps",
        ylabel="variance in (m, log s), summed (nats$^2$)",
    )
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, loc="lower right")


def _plot_crossing(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    path = arrays["scales/estimator"] == "path"
    share, ratio = arrays["scales/at"][path], arrays["scales/ratio"][path]
    low, high = ratio - arrays["scales/ratio_low"][path], arrays["scales/ratio_high"][path] - ratio
    fine = np.linspace(share.min(), share.max(), 400)
    axes.plot(fine, np.maximum((1.0 / fine - 1.0) ** 2, 1e-4), color=figures.THIRD, linewidth=1.0)
    shown = share != 1.0  # there it is 0
    axes.errorbar(
        share[shown],
        ratio[shown],
        np.maximum([low, high], 0.0)[:, shown],
        fmt="o",
        markersize=3.5,
        capsize=2,
        color=figures.THIRD,
    )
    axes.axhline(1.0, color="0.4", linewidth=0.8)
    axes.axvline(0.5, color="0.4", linewidth=0.8, linestyle="--")
    axes.set(xlabel="$s^2 / S^2$", ylabel="variance in m, path / total (no unit)")
    axes.set(yscale="log", ylim=(3e-3, None))
