"""The levels of the package, read from its syntax trees: imports point strictly down, and none
hides inside a function.
"""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "vijax"
FILES = sorted(PACKAGE.rglob("*.py"))
# Lowest first. A module may import modules of lower levels only; within a folder, see FOLDERS.
LEVELS = [
    {"types"},
    {"inference", "supports", "densities", "finite", "dependence", "host"},
    {"shapes", "rows", "bijectors", "networks", "objectives", "roughness"},
    {"families"},
    {"noise", "path_weights", "baselines"},
    {"rules"},
    {"guides"},
    {"models"},
    {"estimators"},
    {"algorithms", "draws"},
    {"optimize"},
    {"lab", "diagnostics", "catalogue", "testing"},
]
# Folders whose files may import each other, in one direction.
FOLDERS = {
    "algorithms",
    "diagnostics",
    "estimators",
    "families",
    "guides",
    "lab",
    "models",
    "optimize",
    "rules",
    "testing",
}
# What the base of a folder may itself rest on.
BELOW_BASE = {"families.checked", "families.traits", "rules.legality"}
# Who knows a Batch; the rest speaks of one datum.
BATCHES = {
    "types",
    "inference",
    "shapes",
    "rows",
    "guides.base",
    "estimators",
    "algorithms",
    "draws",
    "optimize",
    "lab",
    "diagnostics",
    "testing",
}


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(tree):
    """Every vijax module that a syntax tree imports, as dotted names below the package."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vijax":
            below = (node.module or "").split(".")[1:]
            found += [".".join(below)] if below else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [
                alias.name.removeprefix("vijax.")
                for alias in node.names
                if alias.name.startswith("vijax")
            ]
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            "relative imports hide the level: write vijax.x"
        )
    return found


def level_of(module):
    top = module.split(".")[0]
    found = [number for number, names in enumerate(LEVELS) if top in names]
    assert found, f"vijax/{top} has no level: add it to LEVELS in this test"
    return found[0]


def violations(module, tree):
    """Imports of `module` that do not point down."""
    top = module.split(".")[0]
    wrong = []
    for target in imports(tree):
        same_folder = top in FOLDERS and target.split(".")[0] == top
        if not same_folder and level_of(target) >= level_of(module):
            wrong.append(
                f"vijax.{module} (level {level_of(module)}) imports vijax.{target} (level "
                f"{level_of(target)})"
            )
        if same_folder and module == f"{top}.base" and target not in BELOW_BASE:
            wrong.append(f"vijax.{module} is the base of its folder, but imports vijax.{target}")
    return wrong


def hidden_imports(tree):
    """Lines of imports of the package inside functions."""
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    ]
    inside = [
        node
        for f in functions
        for node in ast.walk(f)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    return [node.lineno for node in inside if imports(node)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    tree, module = ast.parse(path.read_text()), module_of(path)
    if module != "__init__":  # the front door imports everything
        assert not violations(module.removesuffix(".__init__"), tree)
    assert not hidden_imports(tree), "an import inside a function hides a dependency"


def test_the_layer_test_catches():
    up = ast.parse(
        "from vijax.estimators import estimator\nfrom vijax import optimize\n"
        "from vijax.rules.score import score"
    )
    assert (
        len(violations("rules.pathwise", up)) == 2 and len(violations("families.normal", up)) == 3
    )
    assert violations("rules.base", ast.parse("from vijax.rules.mixed import mixed"))
    assert hidden_imports(ast.parse("def f():\n    import vijax")) == [2]


def test_folders_have_no_circles():
    """Files of one folder import each other in one direction."""
    graph = {
        module_of(p): {
            t for t in imports(ast.parse(p.read_text())) if t.split(".")[0] == p.parent.name
        }
        for p in FILES
        if p.parent != PACKAGE and p.name != "__init__.py"
    }

    def reaches(start, goal, seen=frozenset()):
        return any(
            n == goal or (n not in seen and reaches(n, goal, seen | {n}))
            for n in graph.get(start, ())
        )

    assert not [module for module in graph if reaches(module, module)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_size(path):
    """250 lines a file: past that, it holds two ideas."""
    source = path.read_text()
    assert len(source.splitlines()) <= 250


def test_models_and_families_speak_of_one_datum():
    """Nothing below the guides' one place knows a Batch."""

    def knows(path):
        module = module_of(path)
        return {module, module.split(".")[0]} & (BATCHES | {"__init__"})

    users = [
        str(path)
        for path in FILES
        if not knows(path)
        and any(
            isinstance(node, ast.Name) and node.id == "Batch"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert not users
