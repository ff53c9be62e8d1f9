"""The results of `experiments.gradient_variance` in words and numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vijax.lab.bias import FINE


def data_of(metrics: Mapping[str, Any]) -> str:
    """Problem and number of data."""
    batch, whole = metrics["batch_size"], metrics["num_data"]
    return f"{Path(metrics['problem']).name}, " + (
        f"N = {whole}" if batch == whole else f"a minibatch of {batch} of N = {whole}"
    )


def setting(metrics: Mapping[str, Any]) -> str:
    """Problem, data, objective, K and draws of a run."""
    return (
        f"{data_of(metrics)}, {metrics['objective'].upper()}, K = {metrics['num_samples']}, "
        f"{metrics['num_draws']} draws"
    )


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Ours beside the published value, one line each."""
    width = max(len(claim["what"]) for claim in claims)
    lines = [f"  {'what':{width}s} {'published':>26s} {'ours':>12s} {'+-':>9s}"]
    for claim in claims:
        published = (
            claim["published"]
            if isinstance(claim["published"], str)
            else f"{claim['published']:.5g}"
        )
        error = f"{claim['error']:9.2g}" if claim["error"] else " " * 9
        verdict = "" if claim["agrees"] else "  DISAGREES"
        lines.append(
            f"  {claim['what']:{width}s} {published:>26s} {claim['ours']:12.5g} {error}{verdict}  "
            f"{claim['source']}"
        )
    return "\n".join(lines)


def leaderboard(board: Any, block: str, setting: str) -> str:
    """One line per estimator, best first, those that are ranked apart last; empty if the block has
    no parameters.
    """
    rows = board[board.block == block].sort_values(["rank", "variance"]).to_dict("records")
    if not rows:
        return ""
    width = max(len(row["estimator"]) for row in rows)
    first = board.estimator.iloc[0]
    lines = [
        f"gradient in {block}: {setting}",
        "  variance: summed over elements, of the bound on all data, nats^2; equal ranks are ties; "
        f"ratios and efficiencies are to {first}; intervals: 95 %",
        f"  rank  {'estimator':{width}s} {'variance':>9s} {'+-':>7s} {'ratio':>8s} "
        f"{'':>19s} {'SNR':>7s} {'bias z':>7s} {'evals':>7s} {'us':>8s} {'':>19s} "
        f"{'efficiency':>10s}",
    ]
    for row in rows:
        ratio, time, efficiency = (
            _interval(row, name) for name in ("ratio", "microseconds", "efficiency")
        )
        fine = row["status"] in FINE
        lines.append(
            f"  {row['rank'] if fine else '-':>4}  {row['estimator']:{width}s} "
            f"{row['variance']:9.3g} {row['variance_error']:7.1g} {row['ratio']:8.3g} {ratio} "
            f"{row['snr']:7.3g} {row['worst_z']:7.1f} {row['evaluations']:7d} "
            f"{row['microseconds']:8.1f} {time} {row['efficiency']:10.3g} {efficiency}"
            f"{'' if fine else '  ' + row['status'].upper()}"
        )
    note = "  bias z: the largest of an element; efficiency: 1 / (variance x time)"
    if any(row["status"] not in FINE for row in rows):
        note += "; -: ranked apart, for the reason at the end of the line"
    return "\n".join([*lines, note])


def slopes_table(slopes: Any) -> str:
    """Slopes of the sweep with their intervals."""
    lines = ["slope of log SNR against log K, importance-weighted bound, and its 95 % interval"]
    for row in slopes.to_dict("records"):
        lines.append(
            f"  {row['estimator']:34s} {row['block']:6s} {row['slope']:6.2f}  [{row['low']:.2f}, "
            f"{row['high']:.2f}]"
        )
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"[{row[f'{name}_low']:8.3g},{row[f'{name}_high']:8.3g}]"
