"""Counts files, lines, importers and transitively imported modules of the package.

python tests/support/structure.py        prints the table

Imports are read from the syntax trees, with or without lazy ones in functions.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cellclr_jax"
NAME = PACKAGE.name


@cache
def modules() -> dict[str, Path]:
    """Lists paths of modules by dotted name below the package; '' is the package."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def module_name(path: Path) -> str:
    """Returns the dotted name of a file below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def imported(path: Path, *, lazy: bool = True) -> set[str]:
    """Lists dotted names of the modules, and of names in modules, that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if lazy else _at_import(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that run at the import of a module: not functions, not TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


def own_imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Lists the package's modules that a file imports, by their names below the package."""
    prefix = f"{NAME}."
    names = {n.removeprefix(prefix) for n in imported(path, lazy=lazy) if n.startswith(prefix)}
    return {name for name in names if name in modules()}


@cache
def graph(*, lazy: bool = True) -> dict[str, set[str]]:
    """Lists the modules that each module imports."""
    return {name: own_imports(path, lazy=lazy) - {name} for name, path in modules().items()}


def closure(start: str, *, lazy: bool = False) -> set[str]:
    """Lists the modules that the import of a module loads, including their packages."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or name not in modules():
            continue
        found.add(name)
        waiting += graph(lazy=lazy)[name]
        waiting.append(name.rpartition(".")[0])
    return found - {""}


def importers() -> dict[str, set[str]]:
    """Lists the modules that import each module, without those of '__init__' files."""
    real = {name for name, path in modules().items() if path.name != "__init__.py"}
    return {name: {user for user, used in graph().items() if name in used} for name in real}


def lines(folder: Path, suffixes: tuple[str, ...]) -> int:
    """Counts lines of all files with these suffixes below a folder."""
    return sum(
        path.read_text(encoding="utf-8").count("\n")
        for path in folder.rglob("*")
        if path.suffix in suffixes
    )


def table() -> list[tuple[str, int]]:
    """Computes (name, count) of each measure of structure."""
    sources = (".py", ".jinja", ".css", ".js")
    files = [path for path in PACKAGE.rglob("*") if path.suffix in sources]
    training = closure("training.loop")
    unwanted = ("data.building", "data.segmentation", "profiling.report", "pages")
    return [
        ("files of the package", len(files)),
        ("Python files at its top level", len(list(PACKAGE.glob("*.py")))),
        ("lines of source, templates included", lines(PACKAGE, sources)),
        ("lines of tests", lines(ROOT / "tests", (".py",))),
        ("modules with one importer", sum(len(users) == 1 for users in importers().values())),
        ("modules loaded by `import cellclr_jax.training.loop`", len(training)),
        (
            "of these, of building, segmentation or pages",
            sum(name.startswith(unwanted) for name in training),
        ),
    ]


if __name__ == "__main__":
    print("| measure | count |\n|---|---|")
    for measure, count in table():
        print(f"| {measure} | {count:,} |")
