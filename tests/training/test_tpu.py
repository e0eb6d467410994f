"""The step compiles for TPUs, fits into their memory, and exchanges few bytes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cellclr_jax import default_config

BENCH = Path(__file__).parents[1] / "bench" / "tpu_step.py"
CELLS, LAYERS = 64, 4

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[test,tpu]' in an environment of its own",
)


@pytest.fixture(scope="module")
def row():
    """Memory, operations and exchanged bytes of a small network's step on eight chips of a v5e."""
    command = [sys.executable, str(BENCH), "--topology=v5e:2x4", "--json"]
    command += [f"--minibatch_size={CELLS}", "--config.model.encoder=cnn"]
    command += ["--config.model.cnn.norm=batch"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(ran.stdout)
    assert "error" not in figures, f"{figures['error']}\n{ran.stderr}"
    return figures


def test_devices_of_a_host_are_contiguous_in_the_mesh_of_a_pod_slice():
    program = """
import os, sys
sys.path[:0] = sys.argv[1:]
import tpu_step
os.environ.update(tpu_step._WITHOUT_TPU)
print(*(device.process_index for device in tpu_step._mesh("v5e:4x4").devices.flat))
"""
    paths = [str(BENCH.parent), str(BENCH.parents[2])]
    command = [sys.executable, "-c", program, *paths]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    hosts = [int(host) for host in ran.stdout.splitlines()[-1].split()]
    assert hosts == sorted(hosts)
    assert len(set(hosts)) > 1


def test_the_step_compiles_and_fits(row):
    assert row["chips"] == 8
    assert row["fits"]
    assert 0.5 < row["tflop"] / row["model_tflop"] < 2
    assert 0 < row["from_memory"]["gb"] < row["touched"]["gb"]
    assert 0 < row["touched"]["utilisation"] < row["from_memory"]["utilisation"] < 1


def test_rows_are_exchanged_for_the_loss_only(row):
    """Projections are gathered, images are not, and no array is sharded again."""
    assert set(row["collectives"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    width = default_config.get_config().model.head.width
    gathered = row["collectives"].get("all-gather", {"count": 0, "bytes": 0})
    assert gathered["count"] <= 2
    assert gathered["bytes"] <= 2 * 2 * CELLS * width * 4


def test_sums_are_combined_in_few_all_reduces(row):
    """Two for each normalisation, forward and backward; those of the gradients are combined."""
    assert row["collectives"]["all-reduce"]["count"] <= 2 * LAYERS + 6
