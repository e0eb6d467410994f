"""Eight CPU devices for every test, strict array semantics, shared datasets."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests run the same program, some in their own processes: it is compiled once per session.
# Workers share the folder of their controller.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    "PYTEST_XDIST_WORKER" in os.environ and os.environ.get("JAX_COMPILATION_CACHE_DIR")
) or tempfile.mkdtemp(prefix="cellclr_tests_")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# UMAP's functions take longer to compile than a map of some dozen points does without that.
os.environ["NUMBA_DISABLE_JIT"] = "1"


import jax
import pytest

from cellclr_jax import default_config

# Under nohup the hang-up signal is ignored, and the runs of the tests would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# Most programs of the tests take longer to compile than to run: LLVM optimises little, and XLA's
# older generator, which JAX 0.11 no longer has, takes half the time.
QUICK_COMPILATION = ["--xla_backend_optimization_level=1"]
if jax.__version_info__ < (0, 11):
    QUICK_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
# XLA ends a program whose devices reach a collective operation 40 s apart, as they may do where
# eight of them share two cores with other work.
PATIENCE = ["--xla_cpu_collective_call_terminate_timeout_seconds=1800"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_COMPILATION, *PATIENCE])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


# The slowest files run first: at the end of a session one of them would occupy a single core.
LONGEST = (
    "training/test_processes",
    "training/test_torture",
    "training/test_loop",
    "training/test_resume",
    "encoder/test_run_evaluation",
    "encoder/test_embed",
    "training/test_step",
    "encoder/test_own_images_run",
    "models/test_models",
    "weights/test_torch_embeddings",
    "weights/test_convert",
    "encoder/test_real_crops",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the slowest files first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    names = {item: "/".join(item.path.with_suffix("").parts[-2:]) for item in items}
    items.sort(key=lambda item: place.get(names[item], len(place)))


def pytest_sessionfinish() -> None:
    """Removes the compiled programs."""
    if not IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real BBBC021 data; a test that needs it is skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("CELLCLR_SHARED", default))
    if not (folder / "data" / "bbbc021").is_dir():
        pytest.skip(f"no real data at {folder}: set CELLCLR_SHARED to the folder with data/bbbc021")
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder with a dataset of some hundred small simulated cells, built once per session.

    Tests read it only; those that change files take a copy.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if IS_WORKER else root
    command = [sys.executable, "-m", "cellclr_jax.build", "--source=simulated"]
    command += [f"--data_dir={root}/data", "--weeks=2", "--plates_per_week=1", "--crop_size=48"]
    command += ["--simulator=height=300,width=360,dmso_wells=3", "--workers=1"]
    with (root / "data.lock").open("w") as lock:  # workers wait for the first one
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(root.glob("data/bbbc021/annotated/*/manifest.json")):
            subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return root / "data"


@pytest.fixture
def config(data_dir):
    """A run of a small network on that dataset, which takes seconds."""
    config = default_config.get_config()
    config.data_dir = str(data_dir)
    config.image_size = 24
    del config.views.elastic  # takes longest to compile
    config.validation_fraction = 0.2
    config.model.encoder = "cnn"
    config.model.cnn.widths = (8, 8, 8)
    config.model.cnn.norm = "batch"
    config.model.head.width = 16
    config.optimizer.learning_rate = 0.1
    config.optimizer.name = "sgd"
    config.schedule.warmup_epochs = 0.5
    config.minibatch_size = 64
    config.epochs = 3
    config.log_every = 2
    return config
