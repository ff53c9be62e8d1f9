"""Lists the scripts, one line each: `python -m experiments`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent


def scripts() -> dict[str, str]:
    """{name after `python -m`: first line of the docstring} of every script below this folder.

    Files are read, not imported: some set the process up for themselves when they are.
    """
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        if path != ROOT / "__main__.py" and any(map(_runs, tree.body)):
            parts = path.relative_to(ROOT.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__main__")
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def listing() -> str:
    """The table that is printed."""
    found = scripts()
    width = max(len(name) for name in found)
    lines = [f"  python -m {name:{width}s}  {line}" for name, line in found.items()]
    return "\n".join(["Scripts; --help shows the settings of each:", *lines])


def _runs(statement: ast.stmt) -> bool:
    """Is it `if __name__ == "__main__":`?"""
    return isinstance(statement, ast.If) and "__name__ == '__main__'" in ast.unparse(statement.test)


if __name__ == "__main__":
    print(listing())
