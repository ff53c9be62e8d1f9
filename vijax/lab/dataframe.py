"""Results as pandas tables. Nothing here computes."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd


def to_dataframe(result: NamedTuple) -> pd.DataFrame:
    """The columns of a `Comparison`, `Blocks`, `Slopes` or `Sources` as a table; of a
    `GradientReport`, its blocks.

    Print it with `print(table.to_string(index=False))`, write it with `to_csv` and `to_json`.
    """
    columns: dict[str, Any] = result._asdict()
    blocks = columns.get("blocks")
    if blocks is not None:
        return to_dataframe(blocks)
    return pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})
