"""Do the score function, pathwise and measure-valued gradients have the variances that their closed
forms say?

E[(x - k)^2] under N(mu, s^2), gradients in mu and s, over a range of k (Mohamed, Rosca, Figurnov
and Mnih 2020, section 3 and figure 2). With d = mu - k, one sample, no baseline, coupled measures,
the variances are

    score           mu: d^4/s^2 + 14 d^2 + 15 s^2    s: 2 d^4/s^2 + 60 d^2 + 74 s^2
    pathwise        mu: 4 s^2                        s: 4 d^2 + 8 s^2
    measure-valued  mu: (16/pi - 4) d^2              s: 4 d^2 + 4 s^2

Expect every measured variance within its standard error of these. A few seconds.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from experiments.common import figures
from experiments.common.harness import Outcome
from experiments.gradient_variance.reproductions import claims
from experiments.gradient_variance.reproductions.expectation import Expectation, estimator, measured
from vijax.types import Key

MU, SIGMA = 1.0, 1.5  # as in the paper's figure
SOURCE = "Mohamed et al. 2020, fig. 2"

Form = Callable[[np.ndarray, float], np.ndarray]  # (d, s) -> variance
CLOSED: Mapping[str, tuple[Form, Form]] = {  # of dE/dmu and of dE/ds
    "score": (
        lambda d, s: d**4 / s**2 + 14 * d**2 + 15 * s**2,
        lambda d, s: 2 * d**4 / s**2 + 60 * d**2 + 74 * s**2,
    ),
    "pathwise": (lambda d, s: 4 * s**2 + 0 * d, lambda d, s: 4 * d**2 + 8 * s**2),
    "measure_valued": (lambda d, s: (16 / np.pi - 4) * d**2, lambda d, s: 4 * d**2 + 4 * s**2),
}
RULES = {
    "score": vj.rules.score(vj.baselines.none()),
    "pathwise": vj.rules.pathwise(),
    "measure_valued": vj.rules.measure_valued(),
}


def run(key: Key, *, smoke: bool) -> Outcome:
    """Every rule at every k."""
    k = np.linspace(-3.0, 3.0, 3 if smoke else 7)
    num_draws = 2_000 if smoke else 50_000
    problem = Expectation(vj.families.diag_normal(1), lambda z, k: jnp.square(z[0] - k))
    shape = (len(k), 1)
    phi = {"loc": jnp.full(shape, MU), "log_scale": jnp.full(shape, np.log(SIGMA))}
    rows: list[dict] = []
    arrays = {"k": k}
    for number, (name, rule) in enumerate(RULES.items()):
        made = estimator(problem, rule, 1, len(k))
        report = measured(
            jax.random.fold_in(key, number), made, phi, jnp.asarray(k), num_draws=num_draws
        )
        # d/d log s = s d/ds: variances of the second are those of the first over s^2.
        for part, leaf, unit in (("mu", "loc", 1.0), ("sigma", "log_scale", SIGMA**2)):
            variance, error = (
                np.asarray(tree.phi[leaf])[:, 0] / unit
                for tree in (report.variance, report.variance_error)
            )
            exact = CLOSED[name][part == "sigma"](MU - k, SIGMA)
            arrays |= {
                f"{name}/{part}": variance,
                f"{name}/{part}_error": error,
                f"{name}/{part}_exact": exact,
            }
            rows += [
                claims.claim(
                    f"Var[{name}], d/d{part}, k = {one:g}", e, v, _tolerance(v_e, e), SOURCE
                )
                for one, e, v, v_e in zip(k, exact, variance, error, strict=True)
            ]
    return Outcome({"claims": rows, "mu": MU, "sigma": SIGMA, "num_draws": num_draws}, arrays)


def _tolerance(error: float, exact: float) -> float:
    """The standard error with an allowance for float32, which is all there is where a variance is
    exactly 0.
    """
    return float(np.hypot(error, 1e-6 * (exact + 1.0)))


def plot(metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """Variance against k: closed forms as lines, ours with 95 % intervals."""
    with figures.plt.rc_context(figures.STYLE):
        figure, axes = figures.plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    fine = np.linspace(arrays["k"].min(), arrays["k"].max(), 241)
    for panel, part, symbol in zip(axes, ("mu", "sigma"), (r"\mu", r"\sigma"), strict=True):
        for name, colour in zip(CLOSED, (figures.TEST, figures.TRAIN, figures.THIRD), strict=True):
            curve = CLOSED[name][part == "sigma"](metrics["mu"] - fine, metrics["sigma"])
            panel.plot(fine, curve, color=colour, linewidth=1.2)
            error = claims.HALF_WIDTH * arrays[f"{name}/{part}_error"]
            panel.errorbar(
                arrays["k"],
                arrays[f"{name}/{part}"],
                error,
                color=colour,
                fmt="o",
                markersize=3.5,
                capsize=2,
                label=name.replace("_", "-"),
            )
        panel.set(xlabel="$k$", yscale="log", title=rf"gradient in ${symbol}$", ylim=(0.03, None))
    axes[0].set_ylabel("variance of the gradient (one element, no unit)")
    figure.suptitle(
        f"E[(z - k)$^2$] under N({metrics['mu']:g}, {metrics['sigma']:g}$^2$), K = 1, "
        f"{metrics['num_draws']} draws; bars: 95 % intervals, lines: closed forms",
        fontsize=9,
    )
    axes[1].legend(
        loc="lower left", frameon=False, fontsize=9, ncols=3, columnspacing=1.0, handletextpad=0.2
    )
    return [figures.save(figure, folder, "closed_form_variances")]
