"""What the methods of `experiments.em_mixture` amount to: the table, numbers and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.common.harness import Outcome
from experiments.em_mixture.methods import Row

EXACT = 1e-7  # nats: two roads to one number, in float64


def outcome(
    rows: Sequence[Row], arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> Outcome:
    """All that there is so far."""
    table = [
        {
            "method": row.method,
            "about": row.about,
            "log_evidence": row.evidence,
            "bound": row.bound,
            "bound_se": row.bound_error,
            "gap": row.gap,
            "expected_gap": row.expected,
            "expected_by": row.why,
            "agrees": agrees(row),
            "least_rise": float(np.diff(row.curve).min()) if row.curve.size > 1 else None,
        }
        for row in rows
    ]
    curves = {
        f"{what}/{row.method}": values
        for row in rows
        if row.curve.size
        for what, values in (("passes", row.passes), ("curve", row.curve))
    }
    metrics = {**facts, "rows": table}
    return Outcome(metrics, {**curves, **arrays}, {"gaps": pd.DataFrame(table)})


def agrees(row: Row) -> bool:
    """Is the gap the expected one, exactly or within five standard errors; or not below it?"""
    off, room = row.gap - row.expected, max(EXACT, 5.0 * row.bound_error)
    return -room < off and (row.least or off < room)


def report(done: Outcome) -> str:
    """The table, in the order in which the methods ran."""
    facts = done.metrics
    lines = [
        f"{facts['num_data']} data, {facts['num_components']} components; evidence by summing "
        f"{facts['num_assignments']:,} assignments; nats",
        f"  {'method':36s} {'log-evidence':>12s} {'bound':>9s} {'gap':>17s} {'expected':>9s}",
    ]
    about = ""
    for row in facts["rows"]:
        if row["about"] != about:
            about = row["about"]
            lines.append({"theta": "theta at its maximum", "w": "w integrated out"}[about] + ":")
        error = f" +- {row['bound_se']:.4f}" if row["bound_se"] else ""
        mark = "" if row["agrees"] else "  DIFFERS"
        lines.append(
            f"  {row['method']:36s} {row['log_evidence']:12.4f} {row['bound']:9.4f} "
            f"{abs(row['gap']) if row['agrees'] and not error else row['gap']:8.4f}{error:9s} "
            f"{row['expected_gap']:9.4f}  "
            f"{row['expected_by']}{mark}"
        )
    if "least_cavi_rise" in facts:
        lines.append(
            f"  least rise of a step: EM's log-likelihood {facts['least_em_rise']:.1e}, CAVI's "
            f"bound {facts['least_cavi_rise']:.1e} (expected: none below 0 but for rounding)"
        )
        lines.append(
            f"  largest distance of a bound from the log-likelihood where it touches: "
            f"{facts['touching']:.1e} (expected: 0)"
        )
    lines.append(
        f"  +-: standard error over draws; log {facts['num_components']}! = "
        f"{facts['log_labellings']:.4f} is what one labelling of the components costs"
    )
    return "\n".join(lines)
