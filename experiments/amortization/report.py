"""What the three guides amount to: numbers, tables, and the report in words."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.amortization.measures import Judged, num_parameters
from experiments.common.harness import Outcome
from experiments.common.images import fingerprint
from experiments.vae.problem import Job
from experiments.vae.training import Trained
from vijax import diagnostics
from vijax.diagnostics import LEAST_SAMPLES, Evidence

if TYPE_CHECKING:
    from experiments.amortization.__main__ import Config

# Seen with the default settings: test ELBO, log-evidence, approximation and amortization gap, nats
EXPECTED: Mapping[str, tuple[float, float, float, float]] = {
    "per_datapoint": (-17.89, -17.43, 0.440, 0.016),
    "amortized": (-18.03, -17.23, 0.412, 0.416),
    "semi_amortized": (-17.76, -17.11, 0.451, 0.213),
}


def outcome(
    config: "Config",
    job: Job,
    judged: Mapping[str, Judged],
    training: tuple[str, Trained] | None = None,
    *,
    refinement: Mapping[str, np.ndarray] | None = None,
    widths: Mapping[str, np.ndarray] | None = None,
    reference: diagnostics.Annealed | None = None,
) -> Outcome:
    """All that there is so far."""
    trained = {name: one.trained for name, one in judged.items()}
    trained |= dict([training]) if training else {}
    rows = [
        {"guide": name} | point._asdict() for name, one in trained.items() for point in one.history
    ]
    metrics: dict[str, Any] = {
        "num_train": len(job.train_x),
        "num_test": len(job.scored_test),
        "evidence_samples": config.evidence_samples,
        "gap_images": config.gap_images,
        "scored_images": fingerprint(job.scored_train, job.scored_test),
        "default": config == type(config)(results_dir=config.results_dir, resume=config.resume),
        "guides": {name: summarize(one) for name, one in judged.items()},
    }
    if len(trained) > 1:
        metrics["reached"] = reached(trained)
    arrays: dict[str, np.ndarray] = {}
    for name, one in judged.items():
        for split, gaps in (("train", one.train_gaps), ("test", one.test_gaps)):
            arrays[f"{name}/{split}_approximation"] = np.asarray(gaps.approximation.value)
            arrays[f"{name}/{split}_amortization"] = np.asarray(gaps.amortization.value)
            arrays[f"{name}/{split}_best"] = np.asarray(gaps.best.value)
            arrays[f"{name}/{split}_k_hat"] = np.asarray(gaps.evidence.k_hat)
    if refinement is not None:
        arrays |= {f"{name}/refinement": values for name, values in refinement.items()}
        arrays["refinement_steps"] = np.array(config.refinement_steps)
    if widths is not None:
        arrays |= {f"widths/{split}": values for split, values in widths.items()}
        arrays["widths"] = np.array(config.encoder_widths)
    if reference is not None:
        metrics["annealed"] = compare(reference, judged["amortized"].test_gaps.evidence)
    params = {name: one.params for name, one in trained.items()}
    return Outcome(metrics, arrays, {"history": pd.DataFrame(rows)}, params)


def summarize(one: Judged) -> dict[str, Any]:
    """A guide's numbers, nats per image; `_images_se` is over images, `_sampling_se` of samples."""
    error = np.asarray(one.test.standard_error)
    numbers: dict[str, Any] = {
        "seconds": one.trained.history[-1].seconds,
        "parameters": num_parameters(one.trained.params),
        "parameters_theta": num_parameters(one.trained.params._replace(phi=())),
        "test_log_evidence_sampling_se": float(np.sqrt(np.sum(error**2)) / len(error)),
        "test_unreliable": unreliable(one.test),
        "test_gap_unreliable": unreliable(one.test_gaps.evidence),
        "train_gap_unreliable": unreliable(one.train_gaps.evidence),
    }
    each = {
        "train_elbo": one.train.elbo,
        "test_elbo": one.test.elbo,
        "test_log_evidence": one.test.log_evidence,
    }
    for name, values in each.items():
        numbers[name] = float(np.mean(values))
        numbers[f"{name}_images_se"] = float(np.std(values, ddof=1) / len(values) ** 0.5)
    for split, gaps in (("train", one.train_gaps), ("test", one.test_gaps)):
        for name, gap in (
            ("approximation", gaps.approximation),
            ("amortization", gaps.amortization),
        ):
            mean = diagnostics.averaged(gap)
            numbers[f"{split}_{name}"] = mean.value
            numbers[f"{split}_{name}_images_se"] = mean.standard_error
            numbers[f"{split}_{name}_sampling_se"] = mean.sampling_error
    return numbers


def reached(trained: Mapping[str, Trained]) -> dict[str, Any]:
    """Seconds of training until the test ELBO that all of them reach: the least of their best."""
    level = min(max(point.test_elbo for point in one.history) for one in trained.values())
    first = {
        name: next(point.seconds for point in one.history if point.test_elbo >= level)
        for name, one in trained.items()
    }
    return {"test_elbo": level, "seconds": first}


def unreliable(evidence: Evidence) -> float:
    """Share of the images whose error bar cannot be trusted."""
    return float(1.0 - np.mean(np.asarray(evidence.reliable)))


def compare(reference: diagnostics.Annealed, sampled: Evidence) -> dict[str, Any]:
    """Annealed against importance-sampled log-evidence of the same images, from the best q."""
    strong = reference.evidence
    num = len(strong.log_evidence)
    apart = np.asarray(strong.log_evidence) - np.asarray(sampled.log_evidence)[:num]
    errors = np.hypot(strong.standard_error, np.asarray(sampled.standard_error)[:num])
    known = np.asarray(strong.reliable) & np.asarray(sampled.reliable)[:num]
    return {
        "images": num,
        "difference": float(np.mean(apart)),
        "difference_se": float(np.sqrt(np.sum(errors**2)) / num),
        "largest_z": float(np.max(np.abs(apart) / errors, where=known, initial=0.0)),
        "trusted": int(np.sum(known)),
        "acceptance": float(np.mean(reference.acceptance)),
        "unreliable": unreliable(strong),
    }


def report(done: Outcome) -> str:
    """A row per guide, beside what to expect of the default settings."""
    m = done.metrics
    lines = [
        f"VAE, {m['num_train']} training images, nats per image; gaps of {m['gap_images']} images "
        "of either split",
        f"  {'':18s}{'train ELBO':>11s}{'test ELBO':>16s}{'test log-evidence':>21s}"
        f"{'approximation gap':>19s}{'amortization gap':>18s}{'train':>8s}{'seconds':>9s}"
        f"{'parameters':>12s}",
    ]
    for name, one in m["guides"].items():
        lines.append(
            f"  {name:18s}{one['train_elbo']:11.2f}{_with(one, 'test_elbo'):>16s}"
            f"{_evidence(one):>21s}{_with(one, 'test_approximation', 3):>19s}"
            f"{_with(one, 'test_amortization', 3):>18s}{one['train_amortization']:8.3f}"
            f"{one['seconds']:9.1f}{one['parameters']:12,d}"
        )
        if m["default"] and name in EXPECTED:
            elbo, evidence, approximation, amortization = EXPECTED[name]
            lines.append(
                f"  {'  to expect':18s}{'':11s}{elbo:16.2f}{evidence:21.2f}{approximation:19.3f}"
                f"{amortization:18.3f}"
            )
    if not m["guides"]:
        last = done.tables["history"].iloc[-1]
        lines.append(f"  not scored yet: {last.guide}, test ELBO {last.test_elbo:.2f}")
    else:
        lines += _notes(m)
    return "\n".join(lines)


def _with(one: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """A number and its standard error over images."""
    return f"{one[name]:.{digits}f} +- {one[f'{name}_images_se']:.{digits}f}"


def _evidence(one: Mapping[str, Any]) -> str:
    return _with(one, "test_log_evidence") + ("*" if one["test_unreliable"] else " ")


def _notes(m: Mapping[str, Any]) -> list[str]:
    """What the errors are, where they cannot be trusted, and the check by annealing."""
    k = m["evidence_samples"]
    lines = [
        "  gaps of test images: log p(x) - best ELBO in the family, best - the guide's ELBO; "
        "train: the latter of training images",
        "  +-: standard error of the mean over images; seconds of training, without compiling and "
        "evaluating",
    ]
    flagged = {n: one["test_unreliable"] for n, one in m["guides"].items()}
    if any(flagged.values()):
        shares = ", ".join(f"{share:.1%} of {name}" for name, share in flagged.items() if share)
        above = f"above {diagnostics.most_k_hat(k):.2f}" if k >= LEAST_SAMPLES else "not known"
        lines.append(
            f"  * Pareto k-hat of K = {k} weights {above} for {shares}: no error bar of these "
            "samples can be trusted, and where it is too high the evidence is too low"
        )
    if "reached" in m:
        times = ", ".join(f"{name} {s:.1f}" for name, s in m["reached"]["seconds"].items())
        level = m["reached"]["test_elbo"]
        lines.append(f"  seconds of training until a test ELBO of {level:.2f}: {times}")
    for name, one in m["guides"].items():
        share = one["test_gap_unreliable"]
        if share:
            lines.append(
                f"  {name}: the evidence behind {share:.1%} of the approximation gaps is not "
                "trustworthy (k-hat): these gaps are probably too small"
            )
    if "annealed" in m:
        lines.append(_annealed(m["annealed"]))
    return lines


def _annealed(a: Mapping[str, Any]) -> str:
    largest = f"largest {a['largest_z']:.1f} standard errors of the {a['trusted']} to be trusted"
    if not a["trusted"]:
        largest = "none of whose error bars can be trusted"
    flag = f"; k-hat flags {a['unreliable']:.0%} of these" if a["unreliable"] else ""
    return (
        f"  annealed log-evidence of {a['images']} test images, less that of the best q's samples: "
        f"{a['difference']:.3f} +- {a['difference_se']:.3f} (to expect: 0), "
        f"{largest}, acceptance {a['acceptance']:.2f}{flag}"
    )
