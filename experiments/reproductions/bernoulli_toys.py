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

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.lines import Line2D
from scipy.special import expit

import vijax as vj
from experiments import figures
from experiments.harness import Outcome
from experiments.reproductions import bernoulli_noise, claims
from vijax import lab
from vijax.catalogue import CATALOGUE
from vijax.types import Array, Key, PyTree

ONE_BIT = {"t": (0.45, 0.45, 0.499, 0.499), "eta": (-1.5, 0.5, -1.5, 0.5)}
THREE_BITS = np.asarray([0.6, 0.51, 0.48])
ETA = np.asarray([-4.0, -2.0, 0.0, 2.0])
LIU, DONG, ENUMERATED = (
    "Liu et al. 2019, Kool et al. 2020",
    "closed form, one bit",
    "enumerated noise",
)
COUPLED = ("arm()", "disarm()", "arms(4)")  # one group of draws is one sample
BY_STATES = (  # rules with no noise but the draws
    "score()",
    "score(none())",
    "score(leave_one_out(iwae))",
    "score(moving_average())",
    "score(learned(network))",
    "score(ovis(0))",
    "score(ovis(1))",
    "measure_valued()",
    "enumerated()",
    "local_expectation()",
    "muprop()",
    "double_control_variates()",
    "rodeo()",
)
FEW = ("score()", "local_expectation()", "disarm()", "straight_through()")
SAME_MEAN = {
    "gumbel_rao(0.5)": "straight_through_gumbel(0.5)"
}  # one is the other's conditional expectation
HEAVY = 0.25  # relative error from which a variance counts as not known
NEEDS_LOG_Q = "closed_form_"


class Seen(NamedTuple):
    """One rule at every eta.

    Attributes:
      exact_mean: nan where it is not enumerated
    """

    bias: np.ndarray
    bias_error: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    exact_mean: np.ndarray
    exact_variance: np.ndarray


def _squares(z: Array, x: Mapping[str, Array]) -> Array:
    return jnp.sum(jnp.square(z - x["t"])) - x["shift"]


def _shared(dim: int) -> claims.Expectation:
    """One logit for all bits."""
    return claims.Expectation(
        vj.families.bernoulli(dim), _squares, lambda phi: {"logits": jnp.full(dim, phi["eta"])}
    )


def run(key: Key, *, smoke: bool) -> Outcome:
    """Both toys."""
    one_key, three_key = jax.random.split(key)
    num_draws = 4_000 if smoke else 10_000
    rows = one_bit(one_key, num_draws, ("DisARM",) if smoke else None)
    seen, refused = three_bits(three_key, num_draws, FEW if smoke else CATALOGUE)
    untested = [name for name, rule in seen.items() if not _measurable(rule).any()]
    for name, rule in seen.items():
        if name not in untested:
            rows += _claims(name, rule)
    arrays = {"eta": ETA, "gradient": _exact_gradient()}
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
        made = claims.estimator(_shared(1), rule, num_samples, len(t))
        x = {"t": jnp.asarray(t[:, None], jnp.float32), "shift": jnp.asarray(shift, jnp.float32)}
        report = claims.measured(
            key, made, {"eta": jnp.asarray(eta, jnp.float32)}, x, num_draws=num_draws
        )
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


def three_bits(
    key: Key, num_draws: int, names: Iterable[str]
) -> tuple[dict[str, Seen], dict[str, str]]:
    """Every legal rule at every eta; why the others are not."""
    family = vj.families.bernoulli(len(THREE_BITS))
    legal, refused = {}, {}
    for name in names:
        if name.startswith(NEEDS_LOG_Q):
            refused[name] = "it takes log q out of the integrand, which has none here."
            continue
        rule, num_samples = CATALOGUE[name](family), 1 if name in COUPLED else 2
        try:
            claims.estimator(_shared(len(THREE_BITS)), rule, num_samples, len(ETA))
        except ValueError as reason:
            refused[name] = str(reason)
        else:
            legal[name] = (rule, num_samples)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # compiling is most of the work
        found = pool.map(
            lambda name: _measure(key, name, legal[name][0], legal[name][1], num_draws), legal
        )
    return dict(zip(legal, found, strict=True)), refused


def _measure(key: Key, name: str, rule: vj.Rule, num_samples: int, num_draws: int) -> Seen:
    problem, phi = _shared(len(THREE_BITS)), {"eta": jnp.asarray(ETA, jnp.float32)}
    made = claims.estimator(problem, rule, num_samples, len(ETA))
    t = jnp.broadcast_to(jnp.asarray(THREE_BITS, jnp.float32), (len(ETA), len(THREE_BITS)))
    x = {"t": t, "shift": jnp.zeros(len(ETA))}
    learned = lab.learn(
        key, made, vj.Params((), phi, ()), vj.Batch(x, jnp.arange(len(ETA))), num_steps=300
    )
    exact = {"eta": jnp.asarray(_exact_gradient(), jnp.float32)}
    report = claims.measured(key, made, phi, x, num_draws=num_draws, exact=exact, learned=learned)
    assert report.bias is not None and report.bias_error is not None
    trees = (report.bias, report.bias_error, report.variance, report.variance_error)
    bias, bias_error, variance, variance_error = (
        np.asarray(tree.phi["eta"], float) for tree in trees
    )
    exact_mean, exact_variance = _enumerated(name, rule, num_samples, problem, phi, x, learned)
    # Minus: estimators follow the loss
    return Seen(-bias, bias_error, variance, variance_error, exact_mean, exact_variance)


def _enumerated(
    name: str,
    rule: vj.Rule,
    num_samples: int,
    problem: claims.Expectation,
    phi: PyTree,
    x: PyTree,
    learned: lab.Learned,
) -> tuple[np.ndarray, np.ndarray]:
    """[B] exact mean and variance, nan where they are not known."""
    if name in BY_STATES:
        return bernoulli_noise.by_states(
            rule, problem, phi, x, learned.control, learned.state, num_samples
        )
    t, like = THREE_BITS, SAME_MEAN.get(name, name)
    known: list[Any]
    if name in COUPLED:
        known = [
            bernoulli_noise.arms(e, t, 4)
            if name == "arms(4)"
            else bernoulli_noise.arm(e, t, integrated=name == "disarm()")
            for e in ETA
        ]
    elif name == "local_expectation(num_sites=1)":
        known = [bernoulli_noise.bit_flip(e, t, num_samples) for e in ETA]
    elif like in bernoulli_noise.SLOPES:
        known = [
            bernoulli_noise.relaxed(bernoulli_noise.SLOPES[like], e, t, num_samples) for e in ETA
        ]
    else:
        known = [(np.nan, np.nan)] * len(ETA)
    mean, variance = np.asarray(known, float).T
    return mean, np.full(len(ETA), np.nan) if name in SAME_MEAN else variance


def _exact_gradient() -> np.ndarray:
    return np.asarray([bernoulli_noise.gradient(e, THREE_BITS) for e in ETA])


def _measurable(seen: Seen) -> np.ndarray:
    """[B] is the variance known? Not where single draws make most of it; the error of the mean is
    then not known either.
    """
    return seen.variance_error <= HEAVY * seen.variance + 1e-9


def _claims(name: str, seen: Seen) -> list[dict]:
    """Bias and variance of one rule, at the worst eta where they can be measured."""
    kept = _measurable(seen)
    gradient = _exact_gradient()[kept]
    seen = Seen(*(column[kept] for column in seen))
    unbiased = CATALOGUE[name](vj.families.bernoulli(3)).requires.unbiased
    known = not np.isnan(seen.exact_mean).any()
    expected = np.zeros(len(gradient)) if unbiased or not known else seen.exact_mean - gradient
    if unbiased or known:
        rows = [
            claims.worst(
                f"bias of {name}",
                expected,
                seen.bias,
                seen.bias_error,
                LIU if unbiased else ENUMERATED,
            )
        ]
    else:
        z = np.abs(seen.bias) / seen.bias_error
        i = int(np.argmax(z))
        rows = [
            claims.claim(
                f"bias of {name}",
                "some",
                seen.bias[i],
                seen.bias_error[i],
                "",
                agrees=bool(z[i] > claims.MANY),
            )
        ]
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
    with figures.plt.rc_context(figures.STYLE):
        figure, axes = figures.plt.subplots(
            1, 2, figsize=(8.4, 1.2 + 0.2 * len(rules)), sharey=True
        )
    floor = 1e-7  # where a variance of 0 is drawn
    order = sorted(rules, key=lambda name: arrays[f"{name}/variance"][chosen[1]])
    for panel, i in zip(axes, chosen, strict=True):
        for row, name in enumerate(order):
            variance, error = (
                arrays[f"{name}/variance"][i],
                claims.HALF_WIDTH * arrays[f"{name}/variance_error"][i],
            )
            biased = abs(arrays[f"{name}/bias"][i]) > claims.MANY * arrays[f"{name}/bias_error"][i]
            panel.errorbar(
                max(variance, floor),
                row,
                xerr=[[min(error, 0.9 * variance)], [error]],
                fmt="o",
                markersize=4,
                capsize=2,
                color=figures.TEST if biased else figures.TRAIN,
            )
            exact = arrays[f"{name}/exact_variance"][i]
            if not np.isnan(exact):
                panel.plot(
                    max(exact, floor),
                    row,
                    "x",
                    color="black",
                    markersize=4.5,
                    markeredgewidth=0.9,
                    zorder=4,
                )
        panel.set(
            xscale="log",
            xlabel="variance; none at the left edge",
            title=rf"$\eta$ = {arrays['eta'][i]:g}",
            xlim=(0.5 * floor, 50.0),
        )
    axes[0].set_yticks(range(len(order)), order, fontsize=8)
    handles = [
        Line2D([], [], color=figures.TRAIN, marker="o", linestyle="", label="no bias seen"),
        Line2D([], [], color=figures.TEST, marker="o", linestyle="", label="bias seen"),
        Line2D([], [], color="black", marker="x", linestyle="", label="enumerated"),
    ]
    axes[0].legend(handles=handles, frameon=False, loc="lower right", fontsize=8)
    return [figures.save(figure, folder, "bernoulli_toys")]
