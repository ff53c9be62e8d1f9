"""A results folder: what lies in it, how it is written and read. Every file is whole at any time,
so that a run that ends early leaves what it had.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from vijax.types import PyTree

PACKAGES = ("vijax-research", "jax", "jaxlib", "flax", "optax", "numpy")
INFINITE = {math.inf: "inf", -math.inf: "-inf"}


class Outcome(NamedTuple):
    """What a run has found: everything that the report and the figures need, and nothing else.

    `experiments.compare` reads metrics by these names: the standard error of `NAME` over images is
    `NAME_images_se`, over seeds `NAME_seeds_se`, otherwise `NAME_se`; an array `NAME` has its value
    for every image; runs with one `scored_images` were scored on the same.

    Attributes:
      metrics: numbers, strings, lists and dicts of them, the results: metrics.json.
      arrays: whatever is too large for that: arrays.npz.
      tables: NAME.csv and NAME.json, records.
      params: fitted parameters, any PyTree of arrays: params.npz; () for none.
    """

    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tables: Mapping[str, pd.DataFrame] = {}
    params: PyTree = ()


def new_folder(name: str, config: Any) -> Path:
    """An empty results_dir/NAME/<UTC>-<config hash>; a second run within the same second gets a
    suffix.
    """
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{config_hash(config)}"
    root = Path(config.results_dir) / name
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        try:
            (root / (stem + suffix)).mkdir(parents=True)
        except FileExistsError:
            continue
        return root / (stem + suffix)
    raise FileExistsError(
        f"{root / stem} and 999 like it exist already: give another --results_dir."
    )


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits of the settings; where results and data lie on this disk is no part
    of them.
    """
    places = ("results_dir", "data_dir", "resume")
    settings = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in places
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def write(folder: Path, outcome: Outcome | None, state: Mapping[str, Any], summary: str) -> None:
    """All of an outcome, if there is one; `state` stands first in metrics.json."""
    _whole(folder / "summary.txt", lambda path: path.write_text(summary + "\n"))
    if outcome is None:
        return write_json(folder / "metrics.json", state)
    write_json(folder / "metrics.json", {**state, **outcome.metrics})
    _whole(folder / "arrays.npz", lambda path: _save(path, outcome.arrays))
    if jax.tree.leaves(outcome.params):
        _whole(folder / "params.npz", lambda path: _save(path, flat(outcome.params)))
    for name, table in outcome.tables.items():
        _whole(folder / f"{name}.csv", lambda path, t=table: t.to_csv(path, index=False))
        write_json(folder / f"{name}.json", table.to_dict("records"))


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # np.savez would add a suffix to a name
        np.savez_compressed(file, **arrays)


def _whole(path: Path, make: Callable[[Path], Any]) -> None:
    """A file that appears when it is complete; until then the former one stays."""
    unfinished = path.with_name(path.name + ".part")
    make(unfinished)
    os.replace(unfinished, path)


def write_json(path: Path, values: Any) -> None:
    """Indented JSON, strict: numpy and JAX numbers become numbers, NaN becomes null, an infinity
    the string "inf" or "-inf". `read` turns those of metrics.json back.
    """
    text = json.dumps(_plain(values), indent=2, allow_nan=False)
    _whole(path, lambda part: part.write_text(text + "\n"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):  # np.float64 too
        return None if math.isnan(value) else INFINITE.get(value, float(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value) if isinstance(value, Path) else _plain(np.asarray(value).tolist())


def _numbers(value: Any) -> Any:
    """What `_plain` made of numbers that JSON does not have, turned back."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    back = {None: math.nan, "inf": math.inf, "-inf": -math.inf}
    return back[value] if value is None or value in ("inf", "-inf") else value


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """(config, metrics, arrays) of a results folder: all that `plot` may use. `metrics["status"]`
    says whether the run came to its end.
    """
    folder = Path(folder)
    missing = [
        name
        for name in ("config.json", "metrics.json", "arrays.npz")
        if not (folder / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no finished results folder: it has no {', '.join(missing)}."
        )
    with np.load(folder / "arrays.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    config, metrics = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "metrics")
    )
    return config, _numbers(metrics), arrays


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a results folder, by name."""
    return {path.stem: pd.read_csv(path) for path in sorted(Path(folder).glob("*.csv"))}


def flat(params: PyTree) -> dict[str, np.ndarray]:
    """{path of a leaf, such as "theta/weights": array}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def read_params(folder: Path, like: PyTree) -> PyTree:
    """The parameters that a run stored, in the shape of `like`, such as
    `estimator.init_params(key)`.

    Raises:
      ValueError: if the stored leaves have other names or shapes.
    """
    with np.load(Path(folder) / "params.npz") as stored:
        leaves = {name: stored[name] for name in stored.files}
    wanted = {name: leaf.shape for name, leaf in flat(like).items()}
    found = {name: leaf.shape for name, leaf in leaves.items()}
    if wanted != found:
        differing = sorted(set(wanted.items()) ^ set(found.items()))
        raise ValueError(
            f"{folder}/params.npz was stored under other settings: {differing[:4]} are in only one "
            "of the two. Build the estimator with the settings of its config.json."
        )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])


def over_seeds(each: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """{NAME_seeds: value of each seed, NAME_seeds_se: standard error of their mean}; nothing for
    one seed, which says nothing about others.
    """
    values = {name: np.array([one[name] for one in each], float) for name in names}
    if len(each) < 2:
        return {}
    errors = {name: float(np.std(v, ddof=1) / len(v) ** 0.5) for name, v in values.items()}
    return {f"{name}_seeds": v.tolist() for name, v in values.items()} | {
        f"{name}_seeds_se": error for name, error in errors.items()
    }


def environment() -> dict[str, Any]:
    """Commit, versions, device: what a number depends on beside the settings."""
    device = jax.devices()[0]
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": _git("rev-parse", "HEAD") or "not a git checkout",
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    }


def _git(*args: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
