"""What the trainings of `experiments.sbn` amount to: tables, numbers and the report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.common.images import fingerprint
from experiments.sbn.rules import RULES, evaluations
from experiments.sbn.training import CHECKPOINTS, Job, Trained
from vijax.diagnostics import Evidence

if TYPE_CHECKING:
    from experiments.sbn.__main__ import Config


class Found(NamedTuple):
    """One rule's training with one seed, and what was measured of it so far.

    Attributes:
      scores: of the test images at each checkpoint of its path; None where there are none.
      variance: [CHECKPOINTS] of phi's gradient, nats^2; nan where not measured.
      variance_error: standard errors.
    """

    rule: str
    seed: int
    trained: Trained
    scores: list[Evidence | None]
    variance: np.ndarray
    variance_error: np.ndarray


def begun(rule: str, seed: int, trained: Trained) -> Found:
    """A training of which nothing has been measured yet."""
    unknown = np.full(CHECKPOINTS, np.nan)
    return Found(rule, seed, trained, [None] * len(trained.path), unknown, unknown)


def outcome(config: "Config", job: Job, found: Sequence[Found]) -> Outcome:
    """All that there is so far."""
    by_rule = {one.rule: [other for other in found if other.rule == one.rule] for one in found}
    metrics = {
        "num_train": len(job.train_x),
        "num_test": len(job.test_x),
        "scored_images": fingerprint(job.test_x),
        "evidence_samples": config.evidence_samples,
        "rules": {name: summarize(runs, config) for name, runs in by_rule.items()},
    }
    arrays = {}
    for name, runs in by_rule.items():
        shortest = min(len(one.trained.curve) for one in runs)
        arrays |= {
            f"step_{name}": runs[0].trained.step[:shortest],
            f"curve_{name}": np.stack([one.trained.curve[:shortest] for one in runs]),
        }
        last = [one.scores[-1] for one in runs]
        complete = [np.asarray(scores.log_evidence) for scores in last if scores is not None]
        if len(complete) == len(runs):  # of every image, to compare runs image by image
            arrays[f"rules/{name}/test_bound"] = np.mean(complete, axis=0)
    rows = [row for one in found for row in history(one, config)]
    params: dict[str, Any] = {}
    for one in found:
        params.setdefault(f"seed_{one.seed}", {})[one.rule] = one.trained.path[-1].params
    return Outcome(metrics, arrays, {"history": pd.DataFrame(rows)}, params)


def history(one: Found, config: "Config") -> list[dict[str, Any]]:
    """A row per checkpoint; nats per image. `bound` is the mean over the minibatches since the
    last.
    """
    at, rows = one.trained.at, []
    for i, scores in enumerate(one.scores):
        since = (one.trained.step >= at[max(i - 1, 0)]) & (one.trained.step < at[i])
        rows.append(
            {
                "rule": one.rule,
                "seed": one.seed,
                "step": at[i],
                "samples_seen": at[i] * config.batch_size,
                "seconds": one.trained.seconds[i],
                "bound": np.mean(one.trained.curve[since]) if np.any(since) else math.nan,
                **tested(scores),
                "variance": one.variance[i],
                "variance_se": one.variance_error[i],
            }
        )
    return rows


def tested(scores: Evidence | None) -> dict[str, float]:
    """Means over test images with their standard errors."""
    if scores is None:
        return dict.fromkeys(
            ("test_elbo", "test_elbo_images_se", "test_bound", "test_bound_images_se"), math.nan
        )
    named = {"test_elbo": scores.elbo, "test_bound": scores.log_evidence}
    row = {}
    for name, values in named.items():
        row[name] = float(np.mean(values))
        row[f"{name}_images_se"] = float(np.std(values, ddof=1) / len(values) ** 0.5)
    return row


def summarize(runs: Sequence[Found], config: "Config") -> dict[str, Any]:
    """One rule's numbers, means over its seeds, in nats per image."""
    each = []
    for one in runs:
        tail = max(1, len(one.trained.curve) // 10)
        variance = np.log10(np.maximum(one.variance, 1e-30))
        each.append(
            {
                "train_elbo": float(np.mean(one.trained.curve[-tail:])),
                **tested(one.scores[-1]),
                "microseconds_per_step": one.trained.microseconds,
                "log10_variance_median": float(np.median(variance)),
            }
        )
    means = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    over = harness.over_seeds(each, ("train_elbo", "test_elbo", "test_bound"))
    choice = RULES[runs[0].rule]
    return {
        **means,
        **over,
        "num_samples": choice.num_samples,
        "evaluations_per_step": evaluations(choice, config.layers[0]),
        "interrupted": runs[-1].trained.interrupted,
    }


def report(done: Outcome) -> str:
    """The table, best test bound first."""
    metrics = done.metrics
    lines = [
        f"sigmoid belief net, {metrics['num_train']} training and {metrics['num_test']} test "
        f"images, nats per image; test bound of K = {metrics['evidence_samples']}",
        f"  {'rule':16s} {'train ELBO':>10s} {'test ELBO':>9s} {'test bound':>15s} "
        f"{'log10 var':>9s} {'us/step':>8s}  cost",
    ]
    for name, m in sorted(metrics["rules"].items(), key=_best_first):
        bound = f"{m['test_bound']:8.2f} +- {m['test_bound_images_se']:.2f}"
        spread = f", seeds +- {m['test_bound_seeds_se']:.3f}" if "test_bound_seeds_se" in m else ""
        lines.append(
            f"  {name:16s} {m['train_elbo']:10.2f} {m['test_elbo']:9.2f} {bound:>15s} "
            f"{m['log10_variance_median']:9.2f} {m['microseconds_per_step']:8.0f}  "
            f"{m['evaluations_per_step']}{spread}{'  INTERRUPTED' if m['interrupted'] else ''}"
        )
    lines.append(
        "  +-: standard error over images, common to all rules; var: of phi's gradient, nats^2"
    )
    return "\n".join(lines)


def _best_first(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
    """Rules without a score last."""
    return math.isnan(item[1]["test_bound"]), -item[1]["test_bound"]
