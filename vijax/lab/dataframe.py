"""Results as pandas tables. Nothing here computes."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Table(pd.DataFrame):
    """A DataFrame that shows all of its columns, below each other where a line is too short."""

    @property
    def _constructor(self) -> type["Table"]:
        return Table

    def __repr__(self) -> str:
        with pd.option_context("display.max_columns", None, "display.precision", 4):
            return super().__repr__()

    def _repr_html_(self) -> str | None:
        with pd.option_context("display.max_columns", None, "display.precision", 4):
            return super()._repr_html_()  # pyright: ignore[reportCallIssue]


def to_dataframe(result: NamedTuple) -> Table:
    """The columns of a `Comparison`, `Blocks`, `Slopes` or `Sources` as a table; of a
    `GradientReport`, its blocks. It prints whole; `to_csv` and `to_json` write it.
    """
    columns: dict[str, Any] = result._asdict()
    blocks = columns.get("blocks")
    if blocks is not None:
        return to_dataframe(blocks)
    return Table({name: np.asarray(column) for name, column in columns.items()})
