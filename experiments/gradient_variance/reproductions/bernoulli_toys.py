"""Do the discrete rules have the mean and the variance that enumeration of their noise says, on the
toys of their papers?

One bit, E[(b - t)^2] with t = 0.45 and 0.499 (Tucker et al. 2017; Yin and Zhou 2019; Dong et al.
2020): closed-form variances of leave-one-out REINFORCE, DisARM, ARM and REINFORCE with the exact
mean as baseline. Three bits, E[sum_i (b_i - t_i)^2] with t = (0.6, 0.51, 0.48) and one logit eta
for all, begun at eta = -4 (Liu et al. 2019; Kool et al. 2020): every rule of `vijax.catalogue` that
is legal there, with 2 samples or one coupled group.

Expect no bias where none is claimed, the enumerated bias where there is one, and every variance
within its standard error of the enumerated one. One rule has tails too heavy for any of this,
`importance_without_replacement()`: the variance of its gradient is that of a few draws, so that
neither it nor the error of the mean is known. It is listed as untested. Two minutes on two cores,
most of which compiles 30 rules.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.special import expit

import vijax as vj
from experiments.common import figures
from experiments.common.harness import Outcome
from experiments.gradient_variance.reproductions import bernoulli_noise, claims
from experiments.gradient_variance.reproductions.bernoulli_rules import (
    ETA,
    Seen,
    all_rules,
    exact_gradient,
    one_logit,
)
from experiments.gradient_variance.reproductions.expectation import estimator, measured
from vijax.catalogue import CATALOGUE
from vijax.types import Key

ONE_BIT = {"t": (0.45, 0.45, 0.499, 0.499), "eta": (-1.5, 0.5, -1.5, 0.5)}
LIU, DONG, ENUMERATED = (
    "Liu et al. 2019, Kool et al. 2020",
    "closed form, one bit",
    "enumerated noise",
)
FEW = ("score()", "local_expectation()", "disarm()", "straight_through()")
HEAVY = 0.25  # relative error from which a variance counts as not known
FLOOR = 1e-7  # where a variance of 0 is drawn


def run(key: Key, *, smoke: bool) -> Outcome:
    """Both toys."""
    one_key, three_key = jax.random.split(key)
    num_draws = 4_000 if smoke else 10_000
    rows = one_bit(one_key, num_draws, ("DisARM",) if smoke else None)
    seen, refused = all_rules(three_key, num_draws, FEW if smoke else CATALOGUE)
    untested = [name for name, rule in seen.items() if not _measurable(rule).any()]
    for name, rule in seen.items():
        if name not in untested:
            rows += _claims(name, rule)
    arrays = {"eta": ETA, "gradient": exact_gradient()}
    for name, rule in seen.items():
        arrays |= claims.columns(name, rule)
    return Outcome(
        {
            "claims": rows,
            "rules": list(seen),
            "refused": refused,
            "untested": untested,
            "num_draws": num_draws,
        },
        arrays,
    )


def one_bit(key: Key, num_draws: int, names: Iterable[str] | None) -> list[dict]:
    """Variances against closed forms at two t and two logits."""
    t, eta = (np.asarray(ONE_BIT[name]) for name in ("t", "eta"))
    p, a = expit(eta), 1.0 - 2.0 * t
    none = np.zeros(len(t))
    rules = {
        "leave-one-out, 2 samples": (vj.rules.score(), 2, none),
        "DisARM": (vj.rules.disarm(), 1, none),
        "ARM": (vj.rules.arm(), 1, none),
        "REINFORCE, exact mean as baseline": (vj.rules.score(vj.baselines.none()), 1, t**2 + a * p),
    }
    rows = []
    for name in rules if names is None else names:
        rule, num_samples, shift = rules[name]
        made = estimator(one_logit(1), rule, num_samples, len(t))
        x = {"t": jnp.asarray(t[:, None], jnp.float32), "shift": jnp.asarray(shift, jnp.float32)}
        report = measured(key, made, {"eta": jnp.asarray(eta, jnp.float32)}, x, num_draws=num_draws)
        variance, error = (
            np.asarray(tree.phi["eta"], float) for tree in (report.variance, report.variance_error)
        )
        for i in range(len(t)):
            exact = bernoulli_noise.one_bit(p[i], a[i])[name]
            what = f"Var[{name}], t = {t[i]:g}, p = {p[i]:.2f}"
            rows.append(
                claims.claim(what, exact, variance[i], np.hypot(error[i], 1e-4 * exact), DONG)
            )
    return rows


def _measurable(seen: Seen) -> np.ndarray:
    """[B] is the variance known? Not where single draws make most of it; the error of the mean is
    then not known either.
    """
    return seen.variance_error <= HEAVY * seen.variance + 1e-9


def _claims(name: str, seen: Seen) -> list[dict]:
    """Bias and variance of one rule, at the worst eta where they can be measured."""
    kept = _measurable(seen)
    gradient = exact_gradient()[kept]
    seen = Seen(*(column[kept] for column in seen))
    unbiased = CATALOGUE[name](vj.families.bernoulli(3)).requires.unbiased
    known = not np.isnan(seen.exact_mean).any()
    expected = np.zeros(len(gradient)) if unbiased or not known else seen.exact_mean - gradient
    bias, error = seen.bias, seen.bias_error
    if unbiased or known:
        source = LIU if unbiased else ENUMERATED
        rows = [claims.worst(f"bias of {name}", expected, bias, error, source)]
    else:
        z = np.abs(bias) / error
        i, some = int(np.argmax(z)), bool(np.max(z) > claims.MANY)
        rows = [claims.claim(f"bias of {name}", "some", bias[i], error[i], "", agrees=some)]
    if not np.isnan(seen.exact_variance).any():
        noise = 1e-6 * (seen.exact_variance + gradient**2)  # float32
        error = np.hypot(seen.variance_error, noise)
        rows.append(
            claims.worst(f"Var[{name}]", seen.exact_variance, seen.variance, error, ENUMERATED)
        )
    return rows


def plot(metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """Per rule on the three bits: the variance with its interval at two logits, exact ones as
    crosses.
    """
    rules = metrics["rules"]
    chosen = [0, int(np.argmin(np.abs(arrays["eta"])))]
    size = (8.4, 1.2 + 0.2 * len(rules))
    with figures.plt.rc_context(figures.STYLE):
        figure, axes = figures.plt.subplots(1, 2, figsize=size, sharey=True)
    order = sorted(rules, key=lambda name: arrays[f"{name}/variance"][chosen[1]])
    for panel, i in zip(axes, chosen, strict=True):
        for row, name in enumerate(order):
            _point(panel, row, Seen(*(arrays[f"{name}/{field}"][i] for field in Seen._fields)))
        panel.set(
            xscale="log",
            xlabel="variance of the gradient in $\\eta$ (no unit);\nnone at the left edge",
            title=rf"$\eta$ = {arrays['eta'][i]:g}",
            xlim=(0.5 * FLOOR, 50.0),
        )
    axes[0].set_yticks(range(len(order)), order, fontsize=8)
    figure.suptitle(
        "E[sum of (b - t)$^2$], three bits, K = 2 or one coupled group, "
        f"{metrics['num_draws']} draws; bars: 95 % intervals",
        fontsize=9,
    )
    handles = [
        Line2D([], [], color=figures.TRAIN, marker="o", linestyle="", label="no bias seen"),
        Line2D([], [], color=figures.TEST, marker="o", linestyle="", label="bias seen"),
        Line2D([], [], color="black", marker="x", linestyle="", label="enumerated"),
    ]
    axes[0].legend(handles=handles, frameon=False, loc="lower right", fontsize=8)
    return [figures.save(figure, folder, "bernoulli_toys")]


def _point(panel: Axes, row: int, seen: Seen) -> None:
    """One rule at one eta: its variance with a 95 % interval, and the exact one as a cross."""
    error = claims.HALF_WIDTH * seen.variance_error
    biased = abs(seen.bias) > claims.MANY * seen.bias_error
    panel.errorbar(
        max(seen.variance, FLOOR),
        row,
        xerr=[[min(error, 0.9 * seen.variance)], [error]],
        fmt="o",
        markersize=4,
        capsize=2,
        color=figures.TEST if biased else figures.TRAIN,
    )
    if not np.isnan(seen.exact_variance):
        place = (max(seen.exact_variance, FLOOR), row)
        panel.plot(*place, "x", color="black", markersize=4.5, markeredgewidth=0.9, zorder=4)
