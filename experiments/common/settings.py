"""Settings from the command line: a frozen dataclass, its presets, its short run."""

import argparse
import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from experiments.common.resuming import stored_settings

C = TypeVar("C")
DEBUG = "--debug shows the traceback of an error."


def parse(
    config_type: type[C],
    description: str,
    args: Sequence[str] | None = None,
    *,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    smoke: Callable[[C], C] | None = None,
) -> C:
    """A `Config` from the command line: `--num_samples 5`, `--num-samples=5`, `--smoke`,
    `--smoke=true`, `--widths=200,100`. Whatever is given wins over presets and over the short run.
    `--resume FOLDER`, of a Config with that field, takes the settings of that folder, and no other.

    Args:
      config_type: a frozen dataclass; the comment of a field is its help.
      description: the script's docstring.
      presets: values of the field `preset` -> the defaults that they put in place of the
        dataclass's.
      smoke: what a true field `smoke` makes of the settings.

    Raises:
      SystemExit: 2, after one line on stderr, if the command line is wrong; 0 after --help.
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
    config: Any = _in_one_line(config_type, f"{description}\n\n{DEBUG}", plain, base)
    if getattr(config, "resume", None) is not None:
        return _resumed(config, defaults)
    if smoke is None or not config.smoke:
        return config
    named = {_field(arg.partition("=")[0]) for arg in given} & set(defaults)
    short: Any = smoke(config)
    return dataclasses.replace(short, **{name: getattr(config, name) for name in named})


def _resumed(config: Any, defaults: Mapping[str, Any]) -> Any:
    """The settings of the folder that is to be gone on with.

    Raises:
      ValueError: if others are given beside it, or it is of another script or version.
    """
    changed = [
        f"--{name}"
        for name, value in dataclasses.asdict(config).items()
        if name != "resume" and value != defaults[name]
    ]
    stored = stored_settings(Path(config.resume))
    if changed:
        raise ValueError(
            f"--resume takes all settings from {config.resume}/config.json: leave out "
            f"{', '.join(changed)}, or begin a new run."
        )
    if stored.keys() != defaults.keys():
        odd = sorted(stored.keys() ^ defaults.keys())
        raise ValueError(
            f"--resume {config.resume}: that is a run of another script or version; only one of "
            f"the two has the settings {', '.join(odd[:6])}."
        )
    return type(config)(**(stored | {"resume": config.resume}))


def at_least(config: Any, **least: float) -> None:
    """Raises ValueError for a setting below its least value, or for one of a list."""
    for name, bound in least.items():
        value = getattr(config, name)
        every = value if isinstance(value, tuple) else (value,)
        if any(one is not None and not one >= bound for one in every):
            shown = ",".join(map(str, every))
            raise ValueError(f"--{name}={shown} must be at least {bound:g}.")


def _in_one_line(config_type: type[C], description: str, args: Sequence[str], base: Any) -> C:
    """Tyro's reading; of its framed complaint what it says, on one line."""
    by_name = sys.orig_argv[1:2] == ["-m"]  # not the path of a __main__.py
    prog, said = f"python -m {sys.orig_argv[2]}" if by_name else None, io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                config_type,
                prog=prog,
                description=description,
                args=args,
                use_underscores=True,
                default=base,
            )
    except SystemExit as stop:
        if stop.code:
            inside = [line.strip(" │") for line in said.getvalue().splitlines()]
            rules = [i for i, line in enumerate(inside) if line.startswith(tuple("╭─╰"))]
            first, last = (rules + [-1, len(inside)])[:2] if len(rules) < 2 else rules[:2]
            words = " ".join(" ".join(inside[first + 1 : last]).split())
            print(f"error: {words} (--help lists the settings)", file=sys.stderr)
        raise


def _field(flag: str) -> str:
    """`--no-smoke`, `--smoke` -> `smoke`."""
    return flag.removeprefix("--").replace("-", "_").removeprefix("no_")


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
