"""The figures of a run of `experiments.vae` in words and numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vijax.diagnostics import LEAST_SAMPLES, Evidence, most_k_hat

ACTIVE = 0.01  # variance over images of a unit's posterior mean, from which the unit counts


def summarize(train: Evidence, test: Evidence) -> dict[str, Any]:
    """Means in nats per image, each with the standard error over images; the evidence also with
    that of its samples.
    """
    named = {
        "train_elbo": train.elbo,
        "test_elbo": test.elbo,
        "test_log_evidence": test.log_evidence,
        "gap": test.log_evidence - test.elbo,
    }
    means = {name: float(np.mean(values)) for name, values in named.items()}
    errors = {
        f"{name}_images_se": float(np.std(values, ddof=1) / len(values) ** 0.5)
        for name, values in named.items()
    }
    error = np.asarray(test.standard_error)
    sampling = {
        "test_log_evidence_sampling_se": float(np.sqrt(np.sum(error**2)) / len(error)),
        "share_uncertain": float(np.mean(error > 0.5)),
        "share_unreliable": float(1.0 - np.mean(np.asarray(test.reliable))),
        "train_scored": len(train.elbo),
        "test_scored": len(test.elbo),
    }
    return means | errors | sampling


def split(mean: ArrayLike, kl: ArrayLike, elbo: ArrayLike) -> dict[str, Any]:
    """The ELBO of the test images as reconstruction E_q[log p(x | z)] less KL(q || prior), in nats
    per image, and how many units of z carry something.

    A unit is active if its posterior mean varies over the images: Var_x E_q[z] > 0.01. Burda et al.
    2016, section 5.2.

    Args:
      mean: [M, D] posterior means.
      kl: [M, D] of every unit.
      elbo: [M].
    """
    total = np.sum(np.asarray(kl), axis=1)
    each = {"test_kl": total, "test_reconstruction": np.asarray(elbo) + total}
    means = {name: float(np.mean(values)) for name, values in each.items()}
    errors = {
        f"{name}_images_se": float(np.std(values, ddof=1) / len(values) ** 0.5)
        for name, values in each.items()
    }
    return means | errors | {"active_units": int(np.sum(activity(mean) > ACTIVE))}


def activity(mean: ArrayLike) -> np.ndarray:
    """[D] variance over images of posterior means [M, D]."""
    return np.var(np.asarray(mean), axis=0, ddof=1)


def sampling_error(metrics: Mapping[str, Any]) -> str:
    """The error of the importance samples where it can be trusted, else that it cannot."""
    unreliable, k = metrics["share_unreliable"], metrics["evidence_samples"]
    if unreliable == 0.0:
        return f"their error +- {metrics['test_log_evidence_sampling_se']:.3f}"
    if k < LEAST_SAMPLES:
        return "too few to know their error"
    return (
        f"no error bar: Pareto k-hat above {most_k_hat(k):.2f} for {unreliable:.1%} of the images, "
        "probably too low there"
    )


def report(metrics: Mapping[str, Any]) -> str:
    """Nats per image; every figure beside what its error means."""
    m = metrics
    head = (
        f"VAE, {m['num_train']} training images, K = {m['num_samples']} per step, "
        f"{m['epochs_run']:.0f} epochs"
    )
    own = f"K = {m['evidence_samples']} importance samples, {sampling_error(m)}"
    rows = (
        ("train ELBO", "train_elbo", f"{m['train_scored']} images"),
        ("test ELBO", "test_elbo", f"{m['test_scored']} images"),
        ("test log-evidence", "test_log_evidence", own),
        ("gap", "gap", "log-evidence minus ELBO, about KL(q || posterior)"),
        ("reconstruction", "test_reconstruction", "of the test ELBO: E_q[log p(x | z)]"),
        ("KL to the prior", "test_kl", f"of the test ELBO; {m['active_units']:g} active units"),
    )
    lines = [head + (", interrupted" if m["interrupted"] else ""), f"{'':20}nats per image"]
    for label, name, note in rows:
        lines.append(f"  {label:18}{m[name]:10.3f} +- {m[name + '_images_se']:.3f}   {note}")
    lines += [
        "  +-: standard error of the mean over images, for another sample of as many. The "
        "importance samples' error is",
        "  for these images and this model; their log mean weight is a lower bound in expectation.",
    ]
    if m["share_uncertain"] > 0.05:
        lines.append(
            f"  Careful: {m['share_uncertain']:.1%} of the images have a sampling error above 0.5 "
            "nats: too low."
        )
    lines.append(
        f"  {m['compile_seconds']:.2f} s to compile ({m['compilations']} programs), "
        f"{m['seconds_per_epoch']:.4f} s per epoch, {m['training_seconds']:.1f} s to train with "
        "the learning curve"
    )
    return "\n".join(lines)
