"""The launch scripts, with stand-ins for Python, pip, gcloud and Slurm that record calls."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellclr_jax import default_config

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TOOLS = [
    *("awk", "basename", "bash", "cat", "chmod", "cksum", "cp", "date", "dirname", "env", "git"),
    *("grep", "gzip", "hostname", "mkdir", "nohup", "rm", "sed", "seq", "sleep", "tail", "tar"),
    "touch",
]

# A Python that reports $FAKE_VERSION, makes environments of itself and records modules it runs.
FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$1 $2" in
  "-c import sys; print"*) echo "${FAKE_VERSION:-3.12.1}" ;;
  "-c import hashlib"*) cksum <"$3" ;;
  "-c import ensurepip"*) [ -z "${FAKE_NO_VENV:-}" ] ;;
  "-c import pip") [ -z "${FAKE_NO_PIP:-}" ] && [ -f "$(dirname "$0")/pip" ] ;;
  "-m venv")
    echo "venv" >>"$CALLS"
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" ;;
  "-m "*)
    shift
    echo "$*${JAX_LOCAL_DEVICE_IDS:+ gpus=$JAX_LOCAL_DEVICE_IDS}" >>"$CALLS"
    if [ "$1" = cellclr_jax.eval ]; then
      mkdir -p "${2#--workdir=}/eval/7" && touch "${2#--workdir=}/eval/7/report.html"
    fi
    if [ "$1" = "${FAIL_MODULE:-}" ]; then exit "${FAIL_STATUS:-9}"; fi
    ;;
esac
"""

FAKE_GCLOUD = r"""#!/usr/bin/env bash
line="gcloud"
for word in "$@"; do line="$line|$word"; done
echo "$line" >>"$CALLS"
case "$line" in
  *${FAIL_CALL:-nothing fails}*)
    times=$(grep -c "$FAIL_CALL" "$CALLS")
    if [ "$times" -lt "${FAIL_TIMES:-9}" ]; then exit "${FAIL_STATUS:-7}"; fi ;;
esac
"""

# Makes an environment whose Python only tells its version.
FAKE_UV = r"""#!/usr/bin/env bash
echo "uv $*" >>"$CALLS"
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  printf '#!/usr/bin/env bash\necho Python 3.12.1\n' >.venv/bin/python
  chmod +x .venv/bin/python
fi
"""

FAKE_SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
while [ "$1" != bash ]; do shift; done
SLURM_STEP_TASKS_PER_NODE="${TASKS:-1}(x2)" exec "$@"
"""

FAKE_SCONTROL = r"""#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
if [ "$1" = show ]; then echo "   JobState=${JOB_STATE:-RUNNING} Reason=None"; fi
"""


class House:
    """A copy of the launch scripts; only stand-ins and plain tools are on its PATH."""

    def __init__(self, place: Path) -> None:
        self.root = place / "a house"
        self.bin = place / "bin"
        self.elsewhere = place / "elsewhere"
        self.calls_file = place / "calls"
        for directory in (self.root, self.bin, self.elsewhere):
            directory.mkdir()
        shutil.copytree(ROOT / "launch", self.root / "launch")
        (self.root / "setup.py").write_text("one\n")
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, tool
            (self.bin / tool).symlink_to(path)

    def put(self, name: str, text: str) -> None:
        """Places an executable stand-in on the PATH."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def run(
        self, script: str, *arguments: str, typed: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a launch script from another directory in an environment of `settings` alone."""
        self.calls_file.unlink(missing_ok=True)
        return subprocess.run(
            ["bash", str(self.root / "launch" / script), *arguments],
            cwd=self.elsewhere,
            env={
                "PATH": str(self.bin),
                "CALLS": str(self.calls_file),
                "HOME": str(self.elsewhere),
                "RETRY_SECONDS": "0",
                **settings,
            },
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """What the stand-ins were called with in the last run."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def python(house: House) -> House:
    house.put("python3.12", FAKE_PYTHON)
    house.put("shellcheck", '#!/usr/bin/env bash\necho "shellcheck $*" >>"$CALLS"\n')
    return house


@pytest.fixture
def cloud(house: House) -> House:
    house.put("gcloud", FAKE_GCLOUD)
    git = ["git", "-C", str(house.root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    return house


@pytest.fixture
def slurm(python: House) -> House:
    python.put("srun", FAKE_SRUN)
    python.put("scontrol", FAKE_SCONTROL)
    return python


def test_shellcheck_finds_nothing() -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    command = str(beside) if beside.exists() else shutil.which("shellcheck")
    if command is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    names = [str(path.relative_to(ROOT)) for path in SCRIPTS]
    done = subprocess.run([command, "-x", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_is_strict_and_says_how_it_is_used(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert script.name in text.split("\nset -euo")[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_settings_shown_in_the_header_exist(script: Path) -> None:
    known = set(dotted(default_config.get_config().to_dict()))
    header = script.read_text().split("\nset -euo")[0]
    for name in re.findall(r"--config\.([\w.]+)=", header):
        assert name in known, f"{script.name}: {name}"


def dotted(settings: dict, prefix: str = "") -> Iterator[str]:
    """The names of the settings of a config, with dots where they are nested."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name


# ---------------------------------------------------------------- environment


def test_old_python_is_named_as_the_reason(house: House) -> None:
    house.put("python3", FAKE_PYTHON)
    done = house.run("demo.sh", FAKE_VERSION="3.10.4")
    assert done.returncode == 2
    assert "3.11 or newer" in done.stderr
    assert "python3 is 3.10.4" in done.stderr
    assert house.calls() == []


def test_no_python_and_python_without_venv_are_named(house: House) -> None:
    assert "none that runs" in house.run("test.sh").stderr
    house.put("python3", FAKE_PYTHON)
    done = house.run("test.sh", FAKE_NO_VENV="1")
    assert done.returncode == 2
    assert "apt install python3.12-venv" in done.stderr


def test_shim_that_does_not_run_is_passed_over(python: House) -> None:
    python.put("python3.11", FAKE_PYTHON)
    python.put("python3.12", "#!/usr/bin/env bash\necho 'not selected' >&2; exit 127\n")
    done = python.run("demo.sh")
    assert done.returncode == 0, done.stderr
    assert "with python3.11" in done.stdout


def test_chosen_python_is_taken_or_refused_but_not_replaced(python: House) -> None:
    done = python.run("demo.sh", PYTHON="/nowhere/python3")
    assert done.returncode == 2
    assert "/nowhere/python3" in done.stderr


def test_stamp_skips_the_second_installation_until_setup_changes(python: House) -> None:
    install = "pip install --quiet --disable-pip-version-check -e .[test]"
    assert python.run("test.sh").returncode == 0
    assert python.calls()[:2] == ["venv", install]
    assert python.run("test.sh").returncode == 0
    assert python.calls()[0] == "ruff check ."
    assert python.run("demo.sh").returncode == 0, "the package is installed along with an extra"
    assert not any("pip" in call for call in python.calls())
    (python.root / "setup.py").write_text("two\n")
    assert python.run("test.sh").returncode == 0
    assert python.calls()[0] == install


def test_installation_without_extras_does_not_count_for_the_tests(python: House) -> None:
    assert python.run("demo.sh").returncode == 0
    assert python.run("test.sh").returncode == 0
    assert any("pip install" in call and "-e .[test]" in call for call in python.calls())


def test_failed_installation_is_named_and_tried_again(python: House) -> None:
    done = python.run("demo.sh", FAIL_MODULE="pip")
    assert done.returncode == 1
    assert "the installation failed" in done.stderr
    assert python.run("demo.sh").returncode == 0
    assert "pip install" in python.calls()[0]


@pytest.mark.parametrize("left", ["bin/python", "pyvenv.cfg"])
def test_half_made_environment_is_made_again(python: House, left: str) -> None:
    broken = python.root / ".venv" / left
    broken.parent.mkdir(parents=True)
    broken.write_text("")
    done = python.run("demo.sh")
    assert done.returncode == 0, done.stderr
    assert "making it again" in done.stdout
    assert python.calls()[0] == "venv"


def test_environment_whose_pip_is_missing_is_made_again(python: House) -> None:
    program = python.root / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    shutil.copy(python.bin / "python3.12", program)
    assert "making it again" in python.run("demo.sh").stdout
    assert python.calls()[0] == "venv"


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_is_used(python: House, tmp_path: Path, variable: str) -> None:
    own = tmp_path / "own"
    (own / "bin").mkdir(parents=True)
    shutil.copy(python.bin / "python3.12", own / "bin" / "python")
    (own / "bin" / "pip").touch()
    assert python.run("demo.sh", **{variable: str(own)}).returncode == 0
    assert "venv" not in python.calls()
    assert not (python.root / ".venv").exists()
    done = python.run("demo.sh", FAKE_VERSION="3.9.1", **{variable: str(own)})
    assert done.returncode == 2
    assert f"{own} has 3.9.1" in done.stderr


def test_base_environment_of_conda_is_left_alone(python: House) -> None:
    done = python.run("demo.sh", CONDA_PREFIX="/opt/conda", CONDA_DEFAULT_ENV="base")
    assert done.returncode == 0
    assert python.calls()[0] == "venv"


# ---------------------------------------------------------------- demo.sh, test.sh


def test_demo_builds_trains_evaluates_and_names_the_report(python: House) -> None:
    done = python.run("demo.sh", "--config.epochs=3", RUN="my run")
    run, data = python.elsewhere / "my run", python.root / "data"
    assert done.returncode == 0, done.stderr
    assert python.calls()[2:] == [
        f"cellclr_jax.build --source=simulated --data_dir={data}",
        f"cellclr_jax.main --config=configs/simclr_demo.py --workdir={run} "
        f"--config.data_dir={data} --config.epochs=3",
        f"cellclr_jax.eval --workdir={run} --standardize=controls",
    ]
    assert f"report: {run}/eval/7/report.html" in done.stdout
    assert "[4/4] evaluate" in done.stdout


@pytest.mark.parametrize(
    ("module", "stage"), [("build", "dataset"), ("main", "training"), ("eval", "evaluation")]
)
def test_demo_stops_at_a_stage_that_fails_and_names_it(
    python: House, module: str, stage: str
) -> None:
    done = python.run("demo.sh", FAIL_MODULE=f"cellclr_jax.{module}")
    assert done.returncode == 1
    assert f"({stage}) failed" in done.stderr
    assert python.calls()[-1].startswith(f"cellclr_jax.{module}")


@pytest.mark.parametrize("argument", ["--workdir=x", "--config.data_dir=x", "steps=3"])
def test_demo_refuses_arguments_it_would_misunderstand(python: House, argument: str) -> None:
    assert python.run("demo.sh", argument).returncode == 2
    assert python.calls() == []


def test_tests_run_all_stages_and_pass_arguments_on(python: House) -> None:
    done = python.run("test.sh", "-k", "two words")
    assert done.returncode == 0, done.stderr
    stages = ["ruff check .", "ruff format --check .", "mypy"]
    assert python.calls()[2:5] == stages
    assert python.calls()[5].startswith("shellcheck -x launch/demo.sh launch/environment.sh")
    assert python.calls()[6:] == ["pytest -k two words"]


def test_tests_stop_at_a_stage_that_fails_and_name_it(python: House) -> None:
    done = python.run("test.sh", FAIL_MODULE="mypy")
    assert done.returncode == 1
    assert "stage 4 (mypy) failed" in done.stderr
    assert python.calls()[-1] == "mypy"


@pytest.mark.parametrize("script", ["demo.sh", "test.sh", "tpu_vm.sh"])
def test_help_is_the_comment_at_the_head(house: House, script: str) -> None:
    done = house.run(script, "--help")
    assert done.returncode == 0
    assert f"bash launch/{script}" in done.stdout
    assert "set -euo" not in done.stdout


# ---------------------------------------------------------------- tpu_vm.sh

TPU = "gcloud|compute|tpus|tpu-vm|"
ZONE = "us-west4-a"


def worker(workers: str, command: str) -> str:
    return f"{TPU}ssh|cellclr|--worker={workers}|--command=bash cellclr/launch/tpu_vm.sh {command}"


def test_tpu_create(cloud: House) -> None:
    done = cloud.run("tpu_vm.sh", "create", "--project=p", "--name=n1", "--spot", ZONE=ZONE)
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == [
        f"{TPU}create|n1|--accelerator-type=v5litepod-8|--version=v2-alpha-tpuv5-lite|--spot"
        f"|--zone={ZONE}|--project=p"
    ]


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_runtime_follows_the_type(cloud: House, kind: str, runtime: str) -> None:
    assert cloud.run("tpu_vm.sh", "create", ZONE=ZONE, TYPE=kind).returncode == 0
    assert f"--accelerator-type={kind}|--version={runtime}|" in cloud.calls()[0]


def test_tpu_setup_copies_the_commit_to_all_workers(cloud: House) -> None:
    done = cloud.run("tpu_vm.sh", "setup", f"--zone={ZONE}")
    assert done.returncode == 0, done.stderr
    archive = cloud.root / "dist" / "cellclr-cellclr.tar.gz"
    assert not archive.exists(), "the archive is removed in the end"
    assert cloud.calls() == [
        f"{TPU}scp|{archive}|cellclr:cellclr.tar.gz|--worker=all|--zone={ZONE}",
        f"{TPU}ssh|cellclr|--worker=all|--command=mkdir -p cellclr && cd cellclr && rm -rf "
        f"cellclr_jax configs launch && tar -xzf ../cellclr.tar.gz|--zone={ZONE}",
        worker("all", f"worker-setup|--zone={ZONE}"),
    ]


def test_tpu_run_starts_all_workers_and_follows_the_first(cloud: House) -> None:
    flags = ("--zone=us-west4-a", "--bucket=gs://cells/", "--config.note=it's two words")
    done = cloud.run("tpu_vm.sh", "run", *flags)
    assert done.returncode == 0, done.stderr
    start, follow = cloud.calls()
    assert start == worker(
        "all",
        "worker-run gs://cells/data --distributed=true --config=configs/simclr.py "
        rf"--workdir=gs://cells/runs/cellclr '--config.note=it'\''s two words'|--zone={ZONE}",
    )
    assert follow == worker("0", f"worker-follow|--zone={ZONE}")


def test_tpu_run_needs_to_know_the_dataset(cloud: House) -> None:
    done = cloud.run("tpu_vm.sh", "run", ZONE=ZONE)
    assert done.returncode == 2
    assert "--data=" in done.stderr
    assert cloud.calls() == []


def test_tpu_broken_connection_is_taken_up_again(cloud: House) -> None:
    broken = {"FAIL_CALL": "worker-follow", "FAIL_STATUS": "255", "FAIL_TIMES": "3"}
    done = cloud.run("tpu_vm.sh", "follow", ZONE=ZONE, **broken)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls()) == 3


def test_tpu_lost_connection_and_failed_training_end_with_their_own_status(cloud: House) -> None:
    lost = {"FAIL_CALL": "worker-follow", "FAIL_STATUS": "255", "RETRIES": "1"}
    assert cloud.run("tpu_vm.sh", "follow", ZONE=ZONE, **lost).returncode == 4
    assert len(cloud.calls()) == 2
    failed = {"FAIL_CALL": "worker-follow", "FAIL_STATUS": "3"}
    assert cloud.run("tpu_vm.sh", "follow", ZONE=ZONE, **failed).returncode == 3
    assert len(cloud.calls()) == 1


@pytest.mark.parametrize(
    ("run", "call"),
    [
        ("gs://b/r1", "gcloud|storage|rsync|--recursive|gs://b/r1|out/r1"),
        ("runs/r1", f"{TPU}scp|cellclr:cellclr/runs/r1|out|--recurse|--worker=0|--zone={ZONE}"),
        ("/mnt/r1", f"{TPU}scp|cellclr:/mnt/r1|out|--recurse|--worker=0|--zone={ZONE}"),
    ],
)
def test_tpu_fetch(cloud: House, run: str, call: str) -> None:
    assert cloud.run("tpu_vm.sh", "fetch", f"--run={run}", "--out=out", ZONE=ZONE).returncode == 0
    assert cloud.calls() == [call]


def test_tpu_delete_asks_first(cloud: House) -> None:
    call = f"{TPU}delete|cellclr|--quiet|--zone={ZONE}"
    for typed in ("", "n\n"):
        assert cloud.run("tpu_vm.sh", "delete", ZONE=ZONE, typed=typed).returncode == 1
        assert cloud.calls() == []
    assert cloud.run("tpu_vm.sh", "delete", ZONE=ZONE, typed="y\n").returncode == 0
    assert cloud.calls() == [call]
    assert cloud.run("tpu_vm.sh", "delete", "--yes", ZONE=ZONE).returncode == 0
    assert cloud.calls() == [call]


def verbs(calls: list[str]) -> list[str]:
    """The commands of `all` that calls belong to, in short."""
    return [
        call.split("tpu_vm.sh ")[1].split()[0].split("|")[0]
        if "tpu_vm.sh " in call
        else call.split("|")[4 if "tpu-vm" in call else 2]
        for call in calls
    ]


ALL = ["create", "scp", "ssh", "worker-setup", "worker-run", "worker-follow", "rsync"]


@pytest.mark.parametrize(
    ("fails", "status", "delete", "expected"),
    [
        ("", "0", False, ALL),
        ("", "0", True, [*ALL, "delete"]),
        ("worker-follow", "3", False, ALL),
        ("worker-follow", "3", True, [*ALL, "delete"]),
        ("worker-follow", "4", True, [*ALL[:6], "worker-follow"]),
        ("worker-setup", "7", True, [*ALL[:4], "delete"]),
        ("rsync", "7", True, ALL),
        ("create", "7", True, ALL[:1]),
    ],
)
def test_tpu_all_deletes_when_told_even_after_a_failure(
    cloud: House, fails: str, status: str, delete: bool, expected: list[str]
) -> None:
    flags = ["--bucket=b", *(["--delete"] if delete else [])]
    settings = {"ZONE": ZONE, "RETRIES": "1"}
    if fails:
        settings |= {"FAIL_CALL": fails, "FAIL_STATUS": status}
    done = cloud.run("tpu_vm.sh", "all", *flags, **settings)
    assert verbs(cloud.calls()) == expected
    assert (done.returncode == 0) == (not fails)
    if "delete" not in expected and fails != "create":
        assert "costs money" in done.stderr


@pytest.mark.parametrize("command", ["create", "setup", "run", "follow", "fetch", "delete", "all"])
def test_tpu_dry_run_prints_and_runs_nothing(cloud: House, command: str) -> None:
    arguments = ["--dry-run", f"--zone={ZONE}", "--bucket=b", "--runtime=an odd one"]
    done = cloud.run("tpu_vm.sh", command, *arguments)
    assert done.returncode == 0, done.stderr
    assert "gcloud " in done.stdout
    assert cloud.calls() == []
    assert not (cloud.root / "dist").exists()
    if command == "create":
        assert "'--version=an odd one'" in done.stdout
        echo = ["bash", "-c", done.stdout.replace("gcloud", "printf '%s\\n'", 1)]
        words = subprocess.run(echo, capture_output=True, text=True).stdout.splitlines()
        assert "--version=an odd one" in words, "printed commands can be copied"


def test_tpu_failing_command_is_named(cloud: House) -> None:
    done = cloud.run("tpu_vm.sh", "create", ZONE=ZONE, FAIL_CALL="create")
    assert done.returncode == 7
    assert "exit status 7 from: gcloud compute tpus tpu-vm create cellclr" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["destroy"],
        ["create"],
        ["create", "--zone=us-west4-a", "--name=two words"],
        ["create", "--zone=us-west4-a", "--name=x;reboot"],
        ["create", "--zone=us-west4-a", "--name=-x"],
        ["create", "--zone=here"],
        ["create", "--zone=us-west4-a", "--type=v5"],
        ["create", "--zone=us-west4-a", "--tyep=v5p-8"],
        ["create", "--zone=us-west4-a", "name"],
    ],
)
def test_tpu_wrong_use_is_one_line_and_status_2(cloud: House, arguments: list[str]) -> None:
    done = cloud.run("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert cloud.calls() == []


def test_tpu_missing_gcloud_is_named(house: House) -> None:
    done = house.run("tpu_vm.sh", "create", ZONE=ZONE)
    assert done.returncode == 1
    assert "gcloud is not on the PATH" in done.stderr


def place_training(cloud: House, seconds: str, status: int) -> None:
    """Puts a training that lasts and ends as told where a worker expects it."""
    program = cloud.root / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    text = f'#!/usr/bin/env bash\necho "trained $*"; sleep {seconds}; exit {status}\n'
    program.write_text(text)
    program.chmod(0o755)


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 3)])
def test_worker_trains_detached_and_its_status_can_be_followed(
    cloud: House, status: int, expected: int
) -> None:
    place_training(cloud, "0.5", status)
    assert cloud.run("tpu_vm.sh", "worker-follow").returncode == 3, "nothing has been started"
    done = cloud.run("tpu_vm.sh", "worker-run", "gs://b/data", "--config=c.py", "--note=a b")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == [
        "gcloud|storage|rsync|--recursive|--delete-unmatched-destination-objects|gs://b/data|data"
    ]
    again = cloud.run("tpu_vm.sh", "worker-run", "gs://b/data")
    assert again.returncode == 1
    assert "runs already" in again.stderr
    done = cloud.run("tpu_vm.sh", "worker-follow")
    assert done.returncode == expected
    trained = "trained -m cellclr_jax.main --config=c.py --note=a b --config.data_dir="
    assert f"{trained}{cloud.root}/data" in done.stdout


def test_worker_setup_installs_the_extra_for_tpus_and_nothing_beside_it(cloud: House) -> None:
    cloud.put("python3", "#!/usr/bin/env bash\n")
    uv = cloud.elsewhere / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(FAKE_UV)
    uv.chmod(0o755)
    done = cloud.run("tpu_vm.sh", "worker-setup")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == [
        "uv venv --quiet --python=3.12 .venv",
        "uv pip install --quiet --python=.venv/bin/python -e .[tpu]",
    ]
    extras = (ROOT / "setup.py").read_text().split('"tpu": [')[1].split("]")[0]
    assert "gcsfs" in extras, "Orbax writes to gs:// through it"


def test_worker_setup_stops_when_an_installation_fails(cloud: House) -> None:
    cloud.put("python3", "#!/usr/bin/env bash\nexit 5\n")
    done = cloud.run("tpu_vm.sh", "worker-setup")
    assert done.returncode == 5


# ---------------------------------------------------------------- slurm.sh


def submit(house: House, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    job = {"SLURM_JOB_ID": "41", "SLURM_SUBMIT_DIR": str(house.root), "DATA": "/data"}
    return house.run("slurm.sh", *flags, **{**job, **settings})


def test_slurm_trains_on_all_gpus_of_a_node(slurm: House) -> None:
    done = submit(
        slurm, "--config.seed=1", SLURM_GPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="8", RUN="/r"
    )
    assert done.returncode == 0, done.stderr
    flags = (
        "--distributed=true --config=configs/simclr.py --workdir=/r "
        "--config.data_dir=/data --config.seed=1"
    )
    assert slurm.calls()[1:] == [
        "pip install --quiet --disable-pip-version-check -e .[cuda]",
        "srun --kill-on-bad-exit=1 --cpus-per-task=8 "
        f"bash {slurm.root}/launch/slurm.sh task {flags}",
        f"cellclr_jax.main {flags} gpus=0,1,2,3",
    ]


@pytest.mark.parametrize(
    ("visible", "tasks", "expected"),
    [("2,3", "1", " gpus=0,1"), ("5", "8", " gpus=0"), ("0,1,2,3", "4", ""), ("", "1", "")],
)
def test_slurm_task_takes_its_gpus(slurm: House, visible: str, tasks: str, expected: str) -> None:
    done = submit(slurm, CUDA_VISIBLE_DEVICES=visible, TASKS=tasks)
    assert done.returncode == 0, done.stderr
    assert slurm.calls()[-1].endswith(f"--config.data_dir=/data{expected}")


def test_slurm_requeues_what_sigterm_has_ended(slurm: House) -> None:
    done = submit(slurm, FAIL_MODULE="cellclr_jax.main", FAIL_STATUS="143")
    assert done.returncode == 0, done.stderr
    assert slurm.calls()[-2:] == ["scontrol show job 41", "scontrol requeue 41"]
    assert submit(slurm).returncode == 0
    assert not any("scontrol" in call for call in slurm.calls()), "a job that is done stays so"


def test_slurm_requeues_when_training_saves_and_ends_well_after_sigterm(slurm: House) -> None:
    own = FAKE_PYTHON.replace(
        "    shift\n", '    shift\n    if [ "$1" = cellclr_jax.main ]; then kill -TERM $PPID; fi\n'
    )
    slurm.put("python3.12", own)
    assert submit(slurm).returncode == 0
    assert slurm.calls()[-1] == "scontrol requeue 41"


def test_slurm_does_not_requeue_a_cancelled_or_failed_job(slurm: House) -> None:
    ended = {"FAIL_MODULE": "cellclr_jax.main", "FAIL_STATUS": "143"}
    assert submit(slurm, JOB_STATE="CANCELLED", **ended).returncode == 0
    assert slurm.calls()[-1] == "scontrol show job 41"
    done = submit(slurm, FAIL_MODULE="cellclr_jax.main", FAIL_STATUS="1")
    assert done.returncode == 1
    assert "training failed with status 1" in done.stderr
    assert not any("scontrol" in call for call in slurm.calls())


def test_slurm_does_not_requeue_when_srun_ends_the_other_tasks_of_a_failed_one(
    slurm: House,
) -> None:
    both = 'FAIL_STATUS=1 "$@" || status=$?\nFAIL_STATUS=143 "$@"\nexit $status\n'
    slurm.put("srun", FAKE_SRUN.split("SLURM_STEP")[0] + both)
    done = submit(slurm, FAIL_MODULE="cellclr_jax.main")
    assert done.returncode == 1
    assert sorted(path.suffix for path in slurm.root.glob("runs/slurm-jobs/*")) == [
        ".failed",
        ".preempted",
    ]
    assert not any("scontrol" in call for call in slurm.calls())


def test_slurm_wrong_use_is_named(slurm: House) -> None:
    assert slurm.run("slurm.sh").returncode == 2
    done = submit(slurm, DATA="")
    assert done.returncode == 2
    assert "set DATA" in done.stderr
    assert submit(slurm, SLURM_SUBMIT_DIR="/").returncode == 2


def test_slurm_options_ask_for_requeue_and_a_warning() -> None:
    options = (ROOT / "launch" / "slurm.sh").read_text()
    for option in ("--signal=TERM@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"\n#SBATCH {option}\n" in options


def test_no_real_cloud_or_cluster_is_within_reach(house: House) -> None:
    for command in ("gcloud", "srun", "scontrol", "python3", "pip"):
        assert shutil.which(command, path=str(house.bin)) is None
