"""What every script shares: settings from the command line, a results folder that explains itself,
progress.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import pandas as pd
import tyro
from tqdm.auto import tqdm

C = TypeVar("C")
PACKAGES = ("vijax-research", "jax", "jaxlib", "flax", "optax", "numpy")


class Outcome(NamedTuple):
    """What `run(config)` returns: everything that the report and the figures need, and nothing
    else.

    Attributes:
      metrics: numbers, strings and lists: metrics.json.
      arrays: whatever is too large for that: arrays.npz.
      tables: NAME.csv and NAME.json, records.
    """

    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tables: Mapping[str, pd.DataFrame] = {}


def parse(
    config_type: type[C],
    description: str,
    args: Sequence[str] | None = None,
    *,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> C:
    """A `Config` from the command line: `--num_samples 5`, `--num-samples=5`, `--smoke`,
    `--smoke=true`, `--widths=200,100`.

    Args:
      config_type: a frozen dataclass; the comment of a field is its help.
      description: the script's docstring.
      presets: values of the field `preset` -> the defaults that they put in place of the
        dataclass's; what is given wins.
    """
    given = list(sys.argv[1:] if args is None else args)
    make: Any = config_type
    base: Any = None
    if presets is not None:
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--preset")
        chosen = early.parse_known_args(given)[0].preset
        # Tyro refuses unknown names
        base = make(preset=chosen, **presets[chosen]) if chosen in presets else None
    defaults = {field.name: field.default for field in dataclasses.fields(make)}
    plain = [part for arg in given for part in _spell(arg, defaults)]
    by_name = sys.orig_argv[1:2] == ["-m"]  # not the path of a __main__.py
    return tyro.cli(
        config_type,
        prog=f"python -m {sys.orig_argv[2]}" if by_name else None,
        description=description,
        args=plain,
        use_underscores=True,
        default=base,
    )


def _spell(arg: str, defaults: dict[str, Any]) -> list[str]:
    """`--flag=true`, `--flag=false` and `--list=a,b` as tyro reads them; anything else as it is."""
    name, equals, value = arg.partition("=")
    field = name.removeprefix("--").replace("-", "_")
    default = defaults.get(field) if equals and name.startswith("--") else None
    if isinstance(default, bool) and value.lower() in ("true", "false"):
        return [f"--{field}" if value.lower() == "true" else f"--no_{field}"]
    if isinstance(default, tuple):
        return [name, *re.split(r",(?![^(]*\))", value)]
    return [arg]


def execute(
    name: str,
    config: Any,
    run: Callable[[Any], Outcome],
    report: Callable[[Outcome], str],
    plot: Callable[[Path], Sequence[Path]],
) -> Path:
    """Run a script's job and write its folder: config, environment, metrics, arrays, summary and
    figures. Returns it.

    The config's field `results_dir` says where: the folder is results_dir/NAME/<UTC>-<hash of the
    config>.
    """
    folder, started = new_folder(name, config), time.perf_counter()
    write_json(folder / "config.json", dataclasses.asdict(config))
    write_json(folder / "environment.json", environment())
    outcome = run(config)
    write_json(folder / "metrics.json", outcome.metrics)
    arrays: Any = outcome.arrays
    np.savez_compressed(folder / "arrays.npz", **arrays)
    for table_name, table in outcome.tables.items():
        table.to_csv(folder / f"{table_name}.csv", index=False)
        table.to_json(
            folder / f"{table_name}.json", orient="records", indent=1, double_precision=15
        )
    summary = report(outcome)
    (folder / "summary.txt").write_text(summary + "\n")
    print(summary)
    figures = plot(folder)
    write_json(
        folder / "environment.json",
        environment() | {"seconds": round(time.perf_counter() - started, 2)},
    )
    print(f"{len(figures)} figures and all numbers are in {folder}")
    return folder


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
    places = ("results_dir", "data_dir")
    settings = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in places
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


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


def write_json(path: Path, values: Any) -> None:
    """Indented JSON; numpy and JAX scalars become numbers, NaN stays NaN."""
    path.write_text(json.dumps(values, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else np.asarray(value).tolist()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """(config, metrics, arrays) of a results folder: all that `plot` may use."""
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
    return config, metrics, arrays


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a results folder, by name."""
    return {path.stem: pd.read_csv(path) for path in sorted(Path(folder).glob("*.csv"))}


def progress_bar(total: int, what: str | None, unit: str) -> tqdm:
    """A progress bar on stderr, silent for `what=None`; where stderr is no terminal, only after two
    seconds of work.
    """
    delay = 0.2 if sys.stderr.isatty() else 2.0
    return tqdm(
        total=total, desc=what, unit=unit, delay=delay, mininterval=0.2, disable=what is None
    )
