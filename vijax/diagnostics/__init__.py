"""Judgements of a fitted guide: evidence, bounds, gaps. They change nothing; not inside `jit`."""

from vijax.diagnostics.annealed import Annealed, annealed_evidence
from vijax.diagnostics.averages import Averaged, averaged
from vijax.diagnostics.brackets import Brackets, brackets
from vijax.diagnostics.evidence import Estimated, Evidence, evidence_of, log_evidence
from vijax.diagnostics.gaps import Gaps, inference_gap
from vijax.diagnostics.sandwich import Sandwich, sandwich
from vijax.diagnostics.smoothing import LEAST_SAMPLES, Smoothed, most_k_hat, pareto_smoothed

__all__ = [
    "LEAST_SAMPLES",
    "Annealed",
    "Averaged",
    "Brackets",
    "Estimated",
    "Evidence",
    "Gaps",
    "Sandwich",
    "Smoothed",
    "annealed_evidence",
    "averaged",
    "brackets",
    "evidence_of",
    "inference_gap",
    "log_evidence",
    "most_k_hat",
    "pareto_smoothed",
    "sandwich",
]
