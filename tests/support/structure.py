"""Counts what a reader of the package meets: files, lines, importers, modules behind an import.

python tests/support/structure.py        prints the table

Imports are read from the syntax trees: `static` ones at the top of a module, and all of them, lazy
ones within functions included.
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
    """Path of each module by its dotted name below the package; '' is the package itself."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def module_name(path: Path) -> str:
    """Dotted name below the package of a file in it."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def imported(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names that a file imports, modules and names of modules alike."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if lazy else _at_import(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported: none within functions or TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


def own_imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of the package that a file imports, by their names below the package."""
    prefix = f"{NAME}."
    names = {n.removeprefix(prefix) for n in imported(path, lazy=lazy) if n.startswith(prefix)}
    return {name for name in names if name in modules()}


@cache
def graph(*, lazy: bool = True) -> dict[str, set[str]]:
    """Modules that each module imports."""
    return {name: own_imports(path, lazy=lazy) - {name} for name, path in modules().items()}


def closure(start: str, *, lazy: bool = False) -> set[str]:
    """Modules that are loaded with a module, packages around them included."""
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
    """Modules of the package that import each module; '__init__' files are left out."""
    real = {name for name, path in modules().items() if path.name != "__init__.py"}
    return {name: {user for user, used in graph().items() if name in used} for name in real}


def lines(folder: Path, suffixes: tuple[str, ...]) -> int:
    """Lines of all files with such endings below a folder."""
    return sum(
        path.read_text(encoding="utf-8").count("\n")
        for path in folder.rglob("*")
        if path.suffix in suffixes
    )


def table() -> list[tuple[str, int]]:
    """What is counted, and the counts."""
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
