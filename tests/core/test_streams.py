"""A program continues without its standard streams."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHATTY = """
import subprocess, sys
from cellclr_jax.cli import keep_streams
keep_streams()
file = open(sys.argv[1], "w")
assert file.fileno() > 2
opens = "import sys; sys.exit(open(sys.argv[1], 'a').fileno() < 3)"
subprocess.run([sys.executable, "-c", opens, sys.argv[1]], check=True)
for number in range(20000):
    print("a line of progress", number, file=sys.stderr, flush=True)
print("result")
file.write("done")
"""


@pytest.mark.parametrize(
    "shell",
    ["{} 2>&1 >{out} | head -1", "{} 0<&- 2>&- >{out}", "{} 2>/dev/full >{out}"],
)
def test_a_program_continues_without_a_console(tmp_path, shell):
    done, out = tmp_path / "done", tmp_path / "out"
    (tmp_path / "program.py").write_text(CHATTY)
    program = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path}/program.py {done}"
    command = f"set -o pipefail; {shell.format(program, out=out)}"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert done.read_text() == "done"
    assert out.read_text() == "result\n"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- 0<&-"])
def test_a_binary_exits_normally_without_its_streams(closed):
    command = f"{sys.executable} -m cellclr_jax.eval --out=x {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
