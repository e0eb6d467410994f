"""slurm.sh, with stand-ins for Python and Slurm."""

import subprocess
from pathlib import Path

import pytest
from support.launch_scripts import FAKE_PYTHON, LaunchScripts

FAKE_SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
while [ "$1" != bash ]; do shift; done
SLURM_STEP_TASKS_PER_NODE="${TASKS:-1}(x2)" exec "$@"
"""

FAKE_SCONTROL = r"""#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
if [ "$1" = show ]; then echo "   JobState=${JOB_STATE:-RUNNING} Reason=None"; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> LaunchScripts:
    scripts = LaunchScripts(tmp_path)
    scripts.put("python3.12", FAKE_PYTHON)
    scripts.put("srun", FAKE_SRUN)
    scripts.put("scontrol", FAKE_SCONTROL)
    return scripts


def submit(
    scripts: LaunchScripts, *flags: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    job = {"SLURM_JOB_ID": "41", "SLURM_SUBMIT_DIR": str(scripts.root), "DATA": "/data"}
    return scripts.run("slurm.sh", *flags, **{**job, **settings})


def test_slurm_trains_on_all_gpus_of_a_node(slurm: LaunchScripts) -> None:
    done = submit(
        slurm, "--config.seed=1", SLURM_GPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="8", RUN="/r"
    )
    assert done.returncode == 0, done.stderr
    flags = (
        "--distributed=true --config=configs/simclr.py --workdir=/r "
        "--config.data_dir=/data --config.seed=1"
    )
    _, install, step, training = slurm.calls()
    assert install.endswith(" -e .[cuda]")
    assert step.startswith("srun --kill-on-bad-exit=1 --cpus-per-task=8 ")
    assert training == f"cellclr_jax.main {flags} gpus=0,1,2,3"


@pytest.mark.parametrize(
    ("visible", "tasks", "expected"),
    [("2,3", "1", " gpus=0,1"), ("5", "8", " gpus=0"), ("0,1,2,3", "4", ""), ("", "1", "")],
)
def test_slurm_task_takes_its_gpus(
    slurm: LaunchScripts, visible: str, tasks: str, expected: str
) -> None:
    done = submit(slurm, CUDA_VISIBLE_DEVICES=visible, TASKS=tasks)
    assert done.returncode == 0, done.stderr
    assert slurm.calls()[-1].endswith(f"--config.data_dir=/data{expected}")


def test_slurm_requeues_after_sigterm(slurm: LaunchScripts) -> None:
    done = submit(slurm, FAIL_MODULE="cellclr_jax.main", FAIL_STATUS="143")
    assert done.returncode == 0, done.stderr
    assert slurm.calls()[-2:] == ["scontrol show job 41", "scontrol requeue 41"]
    assert submit(slurm).returncode == 0
    assert not any("scontrol" in call for call in slurm.calls()), "a completed job is not requeued"


def test_slurm_requeues_if_training_ends_with_status_0_after_sigterm(slurm: LaunchScripts) -> None:
    own = FAKE_PYTHON.replace(
        "    shift\n", '    shift\n    if [ "$1" = cellclr_jax.main ]; then kill -TERM $PPID; fi\n'
    )
    slurm.put("python3.12", own)
    assert submit(slurm).returncode == 0
    assert slurm.calls()[-1] == "scontrol requeue 41"


def test_slurm_does_not_requeue_a_cancelled_or_failed_job(slurm: LaunchScripts) -> None:
    ended = {"FAIL_MODULE": "cellclr_jax.main", "FAIL_STATUS": "143"}
    assert submit(slurm, JOB_STATE="CANCELLED", **ended).returncode == 0
    assert slurm.calls()[-1] == "scontrol show job 41"
    done = submit(slurm, FAIL_MODULE="cellclr_jax.main", FAIL_STATUS="1")
    assert done.returncode == 1
    assert "training failed with status 1" in done.stderr
    assert not any("scontrol" in call for call in slurm.calls())


def test_slurm_does_not_requeue_if_one_task_failed(
    slurm: LaunchScripts,
) -> None:
    both = 'FAIL_STATUS=1 "$@" || status=$?\nFAIL_STATUS=143 "$@"\nexit $status\n'
    slurm.put("srun", FAKE_SRUN.split("SLURM_STEP")[0] + both)
    done = submit(slurm, FAIL_MODULE="cellclr_jax.main")
    assert done.returncode == 1
    assert not any("scontrol" in call for call in slurm.calls())


def test_slurm_wrong_use_is_reported(slurm: LaunchScripts) -> None:
    assert slurm.run("slurm.sh").returncode == 2
    unknown = submit(slurm, CONFIG="configs/nix.py")
    assert unknown.returncode == 2
    assert "no experiment configs/nix.py" in unknown.stderr
    done = submit(slurm, DATA="")
    assert done.returncode == 2
    assert "set DATA" in done.stderr
    assert submit(slurm, SLURM_SUBMIT_DIR="/").returncode == 2
