"""gpu.sh, with stand-ins for Python, its training and the driver."""

import signal
import time
from pathlib import Path

import pytest
from support.launch_scripts import FAKE_PYTHON, LaunchScripts

# The usual stand-in, with a JAX that has GPUs and a training that records its environment and ends
# as listed in $TRAINING, one item per start.
FAKE_GPU_PYTHON = FAKE_PYTHON.replace(
    'case "$1 $2" in',
    r"""if [ "$1" = -m ] && [ "$2" = cellclr_jax.main ]; then
  shift
  echo "$*" >>"$CALLS"
  env | grep -E '^(CUDA|XLA|JAX)_' | sort >>"$CALLS"
  read -r -a starts <<<"${TRAINING:-0}"
  what=${starts[$(grep -c cellclr_jax.main "$CALLS") - 1]}
  if [ "$what" = waits ]; then
    sleep 3600 &
    trap 'kill $!; sleep 0.2; echo saved; exit 143' TERM
  fi
  echo "training has begun"
  case $what in
    waits) wait ;;
    SIG*) kill -s "$what" $$ ;;
    *) exit "$what" ;;
  esac
fi
case "$1 $2" in
  "-c import jax"*)
    [ -n "${FAKE_GPUS-2}" ] || { echo "Unable to initialize backend 'cuda'" >&2; exit 1; }
    echo "${FAKE_GPUS-2} NVIDIA H200" ;;""",
)
FAKE_NVIDIA_SMI = '#!/usr/bin/env bash\necho "${FAKE_DRIVER:-580.65.06}"\n'
OVERLAP = "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true"


@pytest.fixture
def scripts(tmp_path: Path) -> LaunchScripts:
    return LaunchScripts(tmp_path)


@pytest.fixture
def python(scripts: LaunchScripts) -> LaunchScripts:
    scripts.put("python3.12", FAKE_PYTHON)
    return scripts


@pytest.fixture
def gpus(scripts: LaunchScripts) -> LaunchScripts:
    scripts.put("python3.12", FAKE_GPU_PYTHON)
    scripts.put("nvidia-smi", FAKE_NVIDIA_SMI)
    return scripts


def trained(scripts: LaunchScripts, *more: str) -> str:
    """The call of the training binary with the usual settings."""
    return " ".join(
        [
            "cellclr_jax.main --config=configs/simclr.py",
            f"--workdir={scripts.root}/runs/simclr --config.data_dir={scripts.root}/data",
            *more,
        ]
    )


def test_gpus_train_in_one_process_with_a_log(gpus: LaunchScripts) -> None:
    done = gpus.run("gpu.sh", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    assert gpus.calls()[1].endswith(" -e .[cuda]")
    assert gpus.calls()[2] == trained(gpus, "--config.seed=1")
    assert {"JAX_PLATFORMS=cuda,cpu", "XLA_CLIENT_MEM_FRACTION=0.9", OVERLAP} < set(gpus.calls())
    assert "2 NVIDIA H200" in done.stdout
    assert "training has begun" in done.stdout
    log = gpus.root / "runs" / "simclr" / "gpu.log"
    assert log.read_text() == "training has begun\n"
    assert gpus.run("gpu.sh").returncode == 0
    assert log.read_text() == 2 * "training has begun\n", "a second start appends to the log"


def test_gpu_settings_and_paths_of_the_caller(gpus: LaunchScripts) -> None:
    (gpus.elsewhere / "own.py").write_text("")
    flags = ("--data=data", "--run=r", "--config=own.py", "--gpus=1,0", "--memory=.5")
    variables = {"XLA_FLAGS": "--xla_x=1", "LOG": "own.log", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".4"}
    done = gpus.run("gpu.sh", *flags, "--deterministic", **variables)
    assert done.returncode == 0, done.stderr
    home = gpus.elsewhere
    assert {
        f"cellclr_jax.main --config={home}/own.py --workdir={home}/r --config.data_dir={home}/data",
        "CUDA_VISIBLE_DEVICES=1,0",
        "XLA_CLIENT_MEM_FRACTION=.5",
        OVERLAP.replace("=--", "=--xla_x=1 --xla_gpu_deterministic_ops=true --", 1),
    } < set(gpus.calls())
    assert (home / "own.log").exists()
    preset = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".4", "JAX_PLATFORMS": "cpu"}
    preset["XLA_FLAGS"] = OVERLAP.split("=", 1)[1].replace("true", "false")
    assert gpus.run("gpu.sh", **preset).returncode == 0
    assert gpus.calls()[-3:] == sorted(f"{name}={value}" for name, value in preset.items())


def test_gpu_dry_run_only_prints_the_command(scripts: LaunchScripts) -> None:
    done = scripts.run("gpu.sh", "--dry-run", "--gpus=0,1", "--config.note=two words", RUN="r")
    assert done.returncode == 0, done.stderr
    assert " CUDA_VISIBLE_DEVICES=0,1 " in done.stdout
    assert f"'{scripts.root}/.venv/bin/python' -m cellclr_jax.main " in done.stdout
    assert done.stdout.endswith(" '--config.note=two words'\n")
    assert not (scripts.elsewhere / "r").exists()


def test_gpu_driver_is_checked_before_the_installation(python: LaunchScripts) -> None:
    done = python.run("gpu.sh")
    assert done.returncode == 1
    assert "nvidia-smi is not on the PATH" in done.stderr
    python.put("nvidia-smi", FAKE_NVIDIA_SMI)
    done = python.run("gpu.sh", FAKE_DRIVER="470.82.01")
    assert done.returncode == 1
    assert "driver is 470.82.01: JAX needs 525 or newer" in done.stderr
    python.put("nvidia-smi", "#!/usr/bin/env bash\nexit 9\n")
    assert "nvidia-smi fails" in python.run("gpu.sh").stderr
    assert python.calls() == []


def test_gpus_are_checked_with_jax(gpus: LaunchScripts) -> None:
    done = gpus.run("gpu.sh", FAKE_GPUS="")
    assert done.returncode == 1
    assert "JAX finds no GPU" in done.stderr
    done = gpus.run("gpu.sh", "--gpus=0,1,7")
    assert done.returncode == 2
    assert "of the GPUs 0,1,7 JAX sees 2" in done.stderr
    assert not any("cellclr_jax.main" in call for call in gpus.calls())


@pytest.mark.parametrize(
    ("training", "status", "starts"),
    [
        ("SIGKILL SIGSEGV 0", 0, 3),
        ("SIGKILL 1", 1, 2),
        ("SIGKILL SIGKILL SIGKILL", 137, 3),
        ("2", 2, 1),
        ("143", 143, 1),
    ],
)
def test_gpu_training_restarts_after_a_signal(
    gpus: LaunchScripts, training: str, status: int, starts: int
) -> None:
    done = gpus.run("gpu.sh", "--restarts=2", TRAINING=training)
    assert done.returncode == status, done.stderr
    assert gpus.calls().count(trained(gpus)) == starts
    if status not in (0, 143):
        assert f"training failed with status {status}; the log is" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_gpu_training_saves_before_a_signal_ends_it(
    gpus: LaunchScripts, how: signal.Signals
) -> None:
    log = gpus.root / "runs" / "simclr" / "gpu.log"
    process = gpus.start("gpu.sh", TRAINING="waits")
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 143
    assert errors == "error: stopped; the same command resumes\n"
    assert log.read_text() == "training has begun\nsaved\n"
    assert gpus.calls().count(trained(gpus)) == 1


@pytest.mark.parametrize(
    "arguments",
    [["epochs=3"], ["--config=nix.py"], ["--memory=90"]],
)
def test_gpu_wrong_use_is_one_line_and_status_2(gpus: LaunchScripts, arguments: list[str]) -> None:
    done = gpus.run("gpu.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert gpus.calls() == []
