"""The house keeps its shape: imports go one way, and only one room knows each heavy library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cellclr_jax"
PURE = (
    "losses",
    "gradient_cache",
    "optim",
    "normalization",
    "intensity",
    "train_step",
    "augment",
    "models",
)


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Dotted names of all modules that a file imports, lazily or not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path):
    return {n.removeprefix("cellclr_jax.") for n in imported(path) if n.startswith("cellclr_jax.")}


def users_of(library):
    return {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name == library or name.startswith(f"{library}.") for name in imported(path))
    }


def is_in(module, rooms):
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def module_name(path):
    relative = path.relative_to(PACKAGE).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")


def test_pure_modules_import_pure_modules_alone():
    for path in modules():
        if is_in(module_name(path), PURE):
            foreign = {name for name in own(path) if not is_in(name, PURE)}
            assert not foreign, f"{path.name} imports {foreign}"


@pytest.mark.parametrize("room", ["data", "profiling"])
def test_rooms_without_jax(room):
    for path in modules():
        if is_in(module_name(path), (room,)):
            assert not any(n.split(".")[0] in ("jax", "flax", "optax") for n in imported(path))
            allowed = ("cli", "lock", "data", room)
            foreign = {name for name in own(path) if not is_in(name, allowed)}
            assert not foreign, f"{path.name} imports {foreign}"


def test_one_room_for_each_heavy_library():
    assert users_of("orbax") == {"checkpoint.py"}
    assert users_of("tensorboardX") == {"logs/tensorboard.py"}
    assert users_of("wandb") == {"logs/wandb.py"}
    assert users_of("anndata") == {"profiling/correction_libraries.py", "profiling/exports.py"}
    assert users_of("tensorflow") == set()


def test_few_files_know_what_a_config_is():
    assert users_of("ml_collections") == {
        "config_flag.py",
        "config_ranges.py",
        "default_config.py",
        "encoding.py",
        "experiment.py",
        "run_config.py",
        "train.py",
    }


def test_binaries_are_imported_by_nobody():
    for path in modules():
        assert not {"main", "eval", "build", "embed", "convert", "paper_tables"} & own(path)


def test_a_planted_import_is_caught(tmp_path):
    planted = tmp_path / "losses.py"
    planted.write_text("def f():\n    from cellclr_jax.train import train\n    return train\n")
    assert own(planted) == {"train", "train.train"}
    assert not is_in("train", PURE)


def public_functions(path):
    """Functions of a module and methods of its classes, without a leading underscore."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [module.body]
    bodies += [node.body for node in module.body if isinstance(node, ast.ClassDef)]
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_every_public_function_says_what_it_does_and_returns():
    bare = [
        f"{path.name}:{node.name}"
        for path in modules()
        for node in public_functions(path)
        if not ast.get_docstring(node) or node.returns is None
    ]
    assert not bare
