"""The layers of the package import only lower layers, and each heavy library has one user."""

import ast
from pathlib import Path

import pytest
from support import structure

PACKAGE = structure.PACKAGE
BINARIES = {"main", "eval", "build", "embed", "convert", "paper_tables"}
# Every module may import these, which import nothing of the package but each other.
CORE = ("errors", "files", "console")
# Packages that each package may import, in addition to itself and the core.
LAYERS = {
    "augment": (),
    "models": (),
    "objectives": ("models",),
    "data": ("pages", "simulation"),
    "pages": ("data.columns", "data.minibatches"),
    "simulation": ("data",),
    "profiling": ("data", "pages"),
}
WITHOUT_JAX = ("data", "pages", "simulation", "profiling", "errors", "files", "console", "cli")
# Not needed to read a dataset, in training and inference.
BUILDING = ("data.building", "data.sources", "data.readers", "data.segmentation", "data.quality")
# Imported by training only to draw the views of its first step.
PAGES = ("profiling.report", "pages")


def is_in(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def users_of(library):
    return {
        str(path.relative_to(PACKAGE))
        for path in structure.modules().values()
        if any(is_in(name, (library,)) for name in structure.imported(path))
    }


def foreign(path, allowed):
    """Modules of the package that a file imports although its layer must not."""
    return {name for name in structure.own_imports(path) if name and not is_in(name, allowed)}


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_nothing_but_itself(name):
    assert not foreign(structure.modules()[name], CORE)


@pytest.mark.parametrize("package", LAYERS)
def test_a_layer_imports_lower_ones_only(package):
    allowed = (*CORE, package, *LAYERS[package])
    found = {
        name: upward
        for name, path in structure.modules().items()
        if is_in(name, (package,)) and (upward := foreign(path, allowed))
    }
    assert not found


@pytest.mark.parametrize("package", WITHOUT_JAX)
def test_packages_without_jax(package):
    for name, path in structure.modules().items():
        if is_in(name, (package,)):
            heavy = {n for n in structure.imported(path) if is_in(n, ("jax", "flax", "optax"))}
            assert not heavy, f"{name} imports {heavy}"


@pytest.mark.parametrize("module", ["data.dataset", "data.minibatches", "training.loop"])
def test_reading_a_dataset_loads_nothing_of_building_one(module):
    loaded = structure.closure(module)
    assert not {name for name in loaded if is_in(name, BUILDING)}


def test_training_loads_few_modules_and_no_report():
    loaded = structure.closure("training.loop")
    assert not {name for name in loaded if is_in(name, PAGES)}
    assert len(loaded) <= 70


def test_heavy_libraries_have_one_user():
    assert users_of("orbax") == {"training/checkpoints.py"}
    assert users_of("tensorboardX") == {"training/log/tensorboard.py"}
    assert users_of("wandb") == {"training/log/wandb.py"}
    assert users_of("tensorflow") == set()


def test_no_module_imports_a_binary():
    for name, path in structure.modules().items():
        assert not BINARIES & structure.own_imports(path), name


def test_no_module_imports_anothers_private_names():
    found = [
        f"{path.name}: {node.module}.{alias.name}"
        for path in structure.modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(structure.NAME)
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not found


def test_a_planted_import_is_caught(tmp_path):
    planted = tmp_path / "nt_xent.py"
    planted.write_text("def f():\n    from cellclr_jax.training.step import train_step\n")
    assert foreign(planted, CORE) == {"training.step"}
    assert structure.own_imports(planted, lazy=False) == set()


def public_functions(path: Path):
    """Functions of a module and methods of its classes, without a leading underscore."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [module.body]
    bodies += [node.body for node in module.body if isinstance(node, ast.ClassDef)]
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_every_public_function_is_documented_and_annotated():
    bare = [
        f"{path.name}:{node.name}"
        for path in structure.modules().values()
        for node in public_functions(path)
        if not ast.get_docstring(node) or node.returns is None
    ]
    assert not bare
