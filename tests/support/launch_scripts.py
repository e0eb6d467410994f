"""Copies the launch scripts and replaces external programs by stand-ins that record calls."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    *("awk", "basename", "bash", "cat", "chmod", "cksum", "cp", "cut", "date", "dirname", "env"),
    *("git", "mv", "sha256sum", "tr", "wc"),
    *("grep", "gzip", "hostname", "mkdir", "nohup", "rm", "sed", "seq", "sleep", "sort", "tail"),
    *("tar", "tee", "touch"),
]

# A Python that reports $FAKE_VERSION, copies itself into environments and records calls of -m.
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
      for word in "$@"; do
        out=${word#--out=}
        if [ "$out" != "$word" ]; then mkdir -p "$out" && touch "$out/metrics.json"; fi
      done
    fi
    case "$1 $3" in
      "cellclr_jax.main --workdir="*)
        mkdir -p "${3#--workdir=}/checkpoints/7" && touch "${3#--workdir=}/config.json" ;;
    esac
    if [ "$1" = "${FAIL_MODULE:-}" ]; then exit "${FAIL_STATUS:-9}"; fi
    ;;
esac
"""


class LaunchScripts:
    """A copy of the launch scripts with a PATH of only stand-ins and basic tools."""

    def __init__(self, place: Path) -> None:
        self.root = place / "a folder"
        self.bin = place / "bin"
        self.elsewhere = place / "elsewhere"
        self.calls_file = place / "calls"
        for directory in (self.root, self.bin, self.elsewhere):
            directory.mkdir()
        for folder in ("launch", "configs"):
            shutil.copytree(ROOT / folder, self.root / folder)
        (self.root / "setup.py").write_text("one\n")
        (self.root / "cellclr_jax").mkdir()
        shutil.copy(ROOT / "cellclr_jax" / "default_config.py", self.root / "cellclr_jax")
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
        """Runs a launch script from another directory with only `settings` as environment."""
        process = self.start(script, *arguments, **settings)
        out, errors = process.communicate(typed, timeout=1800)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def start(self, script: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        """Starts a launch script; see `run`."""
        self.calls_file.unlink(missing_ok=True)
        # Processes started in the background or by nohup inherit ignored signals.
        default_signals = ["env", "--default-signal=INT,HUP"]
        return subprocess.Popen(
            [*default_signals, "bash", str(self.root / "launch" / script), *arguments],
            cwd=self.elsewhere,
            env={
                "PATH": str(self.bin),
                "CALLS": str(self.calls_file),
                "HOME": str(self.elsewhere),
                "RETRY_SECONDS": "0",
                "QUEUE_SECONDS": "0",
                **settings,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self) -> list[str]:
        """Lists the calls of the stand-ins in the last run."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
