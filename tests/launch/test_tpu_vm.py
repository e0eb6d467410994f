"""tpu_vm.sh, with stand-ins for gcloud and the programs of a worker."""

import subprocess
from pathlib import Path

import pytest
from support.launch_scripts import ROOT, LaunchScripts

FAKE_GCLOUD = r"""#!/usr/bin/env bash
line="gcloud"
for word in "$@"; do line="$line|$word"; done
echo "$line" >>"$CALLS"
case "$line" in
  *queued-resources?describe*)
    read -r -a states <<<"$STATES"
    echo "${states[$(grep -c describe "$CALLS") - 1]}" ;;
  *${FAIL_CALL:-nothing fails}*)
    times=$(grep -c "$FAIL_CALL" "$CALLS")
    if [ "$times" -lt "${FAIL_TIMES:-9}" ]; then exit "${FAIL_STATUS:-7}"; fi ;;
esac
"""

# Makes an environment with a Python that only prints its version.
FAKE_UV = r"""#!/usr/bin/env bash
echo "uv $*" >>"$CALLS"
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  printf '#!/usr/bin/env bash\necho Python 3.12.1\n' >.venv/bin/python
  chmod +x .venv/bin/python
fi
"""

TPU = "gcloud|compute|tpus|tpu-vm|"
ZONE = "us-west4-a"


@pytest.fixture
def scripts(tmp_path: Path) -> LaunchScripts:
    return LaunchScripts(tmp_path)


@pytest.fixture
def cloud(scripts: LaunchScripts) -> LaunchScripts:
    scripts.put("gcloud", FAKE_GCLOUD)
    git = ["git", "-C", str(scripts.root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    return scripts


def test_tpu_create_requests_the_runtime_of_the_type(cloud: LaunchScripts) -> None:
    for kind, runtime in {
        "v5litepod-8": "v2-alpha-tpuv5-lite",
        "v6e-16": "v2-alpha-tpuv6e",
        "v5p-8": "v2-alpha-tpuv5",
        "v4-32": "tpu-ubuntu2204-base",
    }.items():
        done = cloud.run("tpu_vm.sh", "create", "--project=p", "--spot", ZONE=ZONE, TYPE=kind)
        assert done.returncode == 0, done.stderr
        (call,) = cloud.calls()
        assert call.startswith(f"{TPU}create|cellclr|")
        options = {f"--accelerator-type={kind}", f"--version={runtime}", "--spot", "--project=p"}
        assert options < set(call.split("|"))


def test_tpu_waits_for_queued_resources(cloud: LaunchScripts) -> None:
    settings = {"ZONE": ZONE, "QUEUED": "1"}
    states = "WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    done = cloud.run("tpu_vm.sh", "create", "--spot", **settings, STATES=states)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud.calls()) == ["create", *["describe"] * 4]
    assert done.stderr.count("cellclr: WAITING_FOR_RESOURCES\n") == 1
    assert cloud.run("tpu_vm.sh", "delete", "--yes", **settings).returncode == 0
    (call,) = cloud.calls()
    assert "queued-resources|delete|cellclr|--force" in call


def test_tpu_checks_the_experiment_first(cloud: LaunchScripts) -> None:
    (cloud.root / "configs" / "new.py").write_text("")
    for config, message in {
        "configs/nix.py": "there are configs/new.py configs/simclr.py",
        "/tmp/config.py": "an experiment of the checkout was expected",
        "configs/new.py": "is not committed",
    }.items():
        flags = ("--dry-run", "--bucket=b", f"--config={config}")
        for command in ("run", "all"):
            done = cloud.run("tpu_vm.sh", command, *flags, ZONE=ZONE)
            assert done.returncode == 2
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
    flags = ("--dry-run", "--bucket=b", "--config=configs/simclr.py:small")
    assert cloud.run("tpu_vm.sh", "run", *flags, ZONE=ZONE).returncode == 0


def test_tpu_setup_copies_the_commit_to_all_workers(cloud: LaunchScripts) -> None:
    done = cloud.run("tpu_vm.sh", "setup", f"--zone={ZONE}")
    assert done.returncode == 0, done.stderr
    assert not list((cloud.root / "dist").iterdir()), "the archive is removed in the end"
    assert verbs(cloud.calls()) == ["scp", "ssh", "worker-setup"]
    assert all("|--worker=all|" in call for call in cloud.calls())


def test_tpu_run_starts_all_workers_and_follows_the_first(cloud: LaunchScripts) -> None:
    flags = ("--zone=us-west4-a", "--bucket=gs://cells/", "--config.note=it's two words")
    done = cloud.run("tpu_vm.sh", "run", *flags)
    assert done.returncode == 0, done.stderr
    start, follow = cloud.calls()
    assert "|--worker=all|" in start
    for word in (
        "worker-run gs://cells/data --distributed=true ",
        " --workdir=gs://cells/runs/cellclr ",
        r" '--config.note=it'\''s two words'",
    ):
        assert word in start
    assert "|--worker=0|" in follow
    assert "worker-follow" in follow


def test_tpu_reconnects(cloud: LaunchScripts) -> None:
    broken = {"FAIL_CALL": "worker-follow", "FAIL_STATUS": "255", "FAIL_TIMES": "3"}
    done = cloud.run("tpu_vm.sh", "follow", ZONE=ZONE, **broken)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls()) == 3


def test_tpu_exit_status_of_lost_connections_and_failed_training(cloud: LaunchScripts) -> None:
    lost = {"FAIL_CALL": "worker-follow", "FAIL_STATUS": "255", "RETRIES": "1"}
    assert cloud.run("tpu_vm.sh", "follow", ZONE=ZONE, **lost).returncode == 4
    assert len(cloud.calls()) == 2
    failed = {"FAIL_CALL": "worker-follow", "FAIL_STATUS": "3"}
    assert cloud.run("tpu_vm.sh", "follow", ZONE=ZONE, **failed).returncode == 3
    assert len(cloud.calls()) == 1


@pytest.mark.parametrize(
    ("run", "source"),
    [
        ("gs://b/r1", "storage|rsync|--recursive|gs://b/r1|"),
        ("runs/r1", "scp|cellclr:cellclr/runs/r1|"),
        ("/mnt/r1", "scp|cellclr:/mnt/r1|"),
    ],
)
def test_tpu_fetch(cloud: LaunchScripts, run: str, source: str) -> None:
    assert cloud.run("tpu_vm.sh", "fetch", f"--run={run}", "--out=out", ZONE=ZONE).returncode == 0
    (call,) = cloud.calls()
    assert source in call


def test_tpu_delete_asks_first(cloud: LaunchScripts) -> None:
    for typed in ("", "n\n"):
        assert cloud.run("tpu_vm.sh", "delete", ZONE=ZONE, typed=typed).returncode == 1
        assert cloud.calls() == []
    assert cloud.run("tpu_vm.sh", "delete", ZONE=ZONE, typed="y\n").returncode == 0
    assert verbs(cloud.calls()) == ["delete"]
    assert cloud.run("tpu_vm.sh", "delete", "--yes", ZONE=ZONE).returncode == 0
    assert verbs(cloud.calls()) == ["delete"]


def verbs(calls: list[str]) -> list[str]:
    """The commands of `all` that calls belong to, in short."""
    return [
        call.split("tpu_vm.sh ")[1].split()[0].split("|")[0]
        if "tpu_vm.sh " in call
        else call.split("|")[2 if "storage" in call else 4]
        for call in calls
    ]


ALL = ["create", "scp", "ssh", "worker-setup", "worker-run", "worker-follow", "rsync"]


@pytest.mark.parametrize(
    ("fails", "status", "delete", "expected"),
    [
        ("", "0", False, ALL),
        ("", "0", True, [*ALL, "delete"]),
        ("worker-follow", "3", True, [*ALL, "delete"]),
        ("worker-follow", "4", True, [*ALL[:6], "worker-follow"]),
        ("worker-setup", "7", True, [*ALL[:4], "delete"]),
        ("rsync", "7", True, ALL),
        ("create", "7", True, ALL[:1]),
    ],
)
def test_tpu_all_deletes_on_request_even_after_a_failure(
    cloud: LaunchScripts, fails: str, status: str, delete: bool, expected: list[str]
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


@pytest.mark.parametrize("command", ["create", "delete", "all"])
def test_tpu_dry_run_only_prints(cloud: LaunchScripts, command: str) -> None:
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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["create"],
        ["create", "--zone=us-west4-a", "--name=x;reboot"],
        ["create", "--zone=us-west4-a", "--tyep=v5p-8"],
    ],
)
def test_tpu_wrong_use_is_one_line_and_status_2(cloud: LaunchScripts, arguments: list[str]) -> None:
    done = cloud.run("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert cloud.calls() == []


def place_training(cloud: LaunchScripts, seconds: str, status: int) -> None:
    """Installs a stand-in for the training with this duration and exit status."""
    program = cloud.root / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    text = f'#!/usr/bin/env bash\necho "trained $*"; sleep {seconds}; exit {status}\n'
    program.write_text(text)
    program.chmod(0o755)


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 3)])
def test_worker_trains_detached_and_its_status_can_be_followed(
    cloud: LaunchScripts, status: int, expected: int
) -> None:
    place_training(cloud, "0.5", status)
    assert cloud.run("tpu_vm.sh", "worker-follow").returncode == 3, "nothing has been started"
    done = cloud.run("tpu_vm.sh", "worker-run", "gs://b/data", "--config=c.py", "--note=a b")
    assert done.returncode == 0, done.stderr
    (call,) = cloud.calls()
    assert call.endswith("|gs://b/data|data")
    again = cloud.run("tpu_vm.sh", "worker-run", "gs://b/data")
    assert again.returncode == 1
    assert "runs already" in again.stderr
    done = cloud.run("tpu_vm.sh", "worker-follow")
    assert done.returncode == expected
    trained = "trained -m cellclr_jax.main --config=c.py --note=a b --config.data_dir="
    assert f"{trained}{cloud.root}/data" in done.stdout


def test_worker_setup_installs_the_extra_for_tpus(cloud: LaunchScripts) -> None:
    cloud.put("python3", "#!/usr/bin/env bash\n")
    uv = cloud.elsewhere / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(FAKE_UV)
    uv.chmod(0o755)
    done = cloud.run("tpu_vm.sh", "worker-setup")
    assert done.returncode == 0, done.stderr
    assert cloud.calls()[-1].endswith(" -e .[tpu]")
    extras = (ROOT / "setup.py").read_text().split('"tpu": [')[1].split("]")[0]
    assert "gcsfs" in extras, "Orbax writes to gs:// through it"
