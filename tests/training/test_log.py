"""Metrics of a run on the console, in `metrics.jsonl`, TensorBoard and Weights & Biases."""

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cellclr_jax.errors import BadUse
from cellclr_jax.objectives import nt_xent
from cellclr_jax.objectives.nt_xent import NTXent
from cellclr_jax.training import log as logs
from cellclr_jax.training.log import console, tensorboard

TRAINING = {"loss": 2.0, "contrastive_accuracy": 0.5}
HEALTHY = {"contrastive_accuracy": 0.1, "uniformity": -2.0, "embedding_spread": 0.4}
# The accuracy of a random guess among 2 * 4 - 1 other views.
IN_ONE_POINT = {"contrastive_accuracy": 0.14, "uniformity": -0.01, "embedding_spread": 0.4}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def open_log(folder, first_step=0, minibatch_size=4, **settings):
    return logs.RunLog(
        None if folder is None else epath.Path(folder),
        NTXent(),
        first_step=first_step,
        total_steps=100,
        minibatch_size=minibatch_size,
        steps_per_epoch=10,
        **settings,
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a test advances: `clock.now += 2`."""
    time = SimpleNamespace(now=1000.0)
    stopped = SimpleNamespace(monotonic=lambda: time.now)
    monkeypatch.setattr(logs, "time", stopped)
    monkeypatch.setattr(console, "time", stopped)
    return time


def events(folder):
    """All events of a run, file by file."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def values(folder):
    """(tag, step, value) of all summaries."""
    return [(v.tag, e.step, v) for e in events(folder) for v in e.summary.value]


def test_rows_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    log = open_log(tmp_path)
    for step in (2, 4, 6):
        log.record(step, 1, TRAINING)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": "4"}\n[1]\n{"step": 3, "embedding_spread": "?"}\n')
        file.write('{"loss": 1}\n{"step": 4, "loss": NaN}\n{"step": 8, "lo')
    log = open_log(tmp_path, first_step=4)
    log.record(5, 1, TRAINING | HEALTHY)
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 3, 5]


def test_a_rate_that_was_not_measured_is_left_out(tmp_path, clock):
    log = open_log(tmp_path)
    clock.now += 60  # compilation
    log.restart_clock(1)
    log.record(1, 1, TRAINING)
    clock.now += 2
    log.waited(0.5)
    log.record(6, 1, TRAINING)
    log.waited(0.5)
    clock.now += 100  # saving
    log.restart_clock(6)
    clock.now += 1
    log.record(7, 1, TRAINING)
    log.close()
    first, second, third = rows(tmp_path)
    assert not {"cells_per_second", "input_wait"} & first.keys()
    assert (second["cells_per_second"], second["input_wait"]) == (10.0, 0.25)
    assert (third["cells_per_second"], third["input_wait"]) == (4.0, 0.0)


def test_a_line_is_printed_every_ten_seconds(tmp_path, capsys, clock):
    log = open_log(tmp_path)
    assert capsys.readouterr().err.startswith("compiling")
    log.restart_clock(1)
    for step in range(2, 6):
        clock.now += 3
        log.advance()
        log.waited(0.3)
        log.record(step, 1, TRAINING)
    clock.now += 1000
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/10  step 5/100  04:45 left  loss 2.0000  acc 50.0%  1 cells/s  input 10%"
    ]
    log.close()


def test_a_terminal_has_a_bar(tmp_path, monkeypatch, clock):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    log = open_log(tmp_path)
    assert "compiling the step" in terminal.getvalue()
    log.restart_clock(1)
    shown = len(terminal.getvalue())
    clock.now += 2
    log.record(2, 1, TRAINING)
    log.record_epoch(2, 1, TRAINING)
    log.close()
    printed = terminal.getvalue()[shown:]
    assert "compiling" not in printed
    assert "loss 2.0000  acc 50.0%  2 cells/s  input 0%" in printed
    assert "03:16 left" in printed
    assert "validation loss 2.0000" in printed


def test_online_scores_are_named_and_printed(tmp_path, capsys):
    log = open_log(tmp_path)
    log.record_scores(10, 1, {})
    log.record_scores(20, 2, {"nsc": 0.625, "nscb_tvn": 0.5, "knn_moa": 0.25})
    log.close()
    online = {"online_nsc": 0.625, "online_nscb_tvn": 0.5, "online_knn_moa": 0.25}
    assert rows(tmp_path) == [{"step": 20, "epoch": 2, **online}]
    assert "NSC 62.5%  NSCB TVN 50.0%  k-NN MoA 25.0%" in capsys.readouterr().err


def test_a_bucket_gets_whole_files_at_each_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "is_local", lambda path: False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    log = open_log(tmp_path, first_step=1)
    log.record(2, 1, TRAINING)
    assert [row["step"] for row in rows(tmp_path)] == [1]
    log.record_epoch(2, 1, TRAINING)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2]
    log.close()
    assert "validation/loss" in {tag for tag, _, _ in values(tmp_path)}


def test_processes_other_than_the_first_write_nothing(capsys):
    log = open_log(None, wandb=None)
    log.restart_clock(1)
    for step in (2, 3, 4):
        log.record(step, 1, TRAINING | IN_ONE_POINT)
    log.record_epoch(2, 1, TRAINING)
    log.record_scores(2, 1, {"nsc": 0.5})
    log.pictures("views", np.zeros((4, 4, 3), np.uint8), 0)
    log.advance()
    log.close()
    assert capsys.readouterr().err == ""


def test_tensorboard_has_a_section_for_each_kind(tmp_path, clock):
    log = open_log(tmp_path)
    log.restart_clock(1)
    clock.now += 1
    norms = {"lr": 0.1, "gradient_norm": 1.0, "parameter_norm": 2.0, "update_norm": 3.0}
    log.record(2, 1, {**TRAINING, **HEALTHY, **norms, "alignment": 0.3, "novel": 1.0})
    log.record_epoch(2, 1, {"loss": 2.5})
    log.record_scores(2, 1, {"nsc": 0.75})
    log.close()
    found = {tag: (step, v.simple_value) for tag, step, v in values(tmp_path)}
    assert found.pop("custom_scalars__config__")
    assert {step for step, _ in found.values()} == {2}
    assert {tag: round(value, 6) for tag, (_, value) in found.items()} == {
        "train/loss": 2.0,
        "train/contrastive_accuracy": 0.1,
        "train/novel": 1.0,
        "validation/loss": 2.5,
        "online/nsc": 0.75,
        "optimizer/lr": 0.1,
        "optimizer/gradient_norm": 1.0,
        "optimizer/parameter_norm": 2.0,
        "optimizer/update_norm": 3.0,
        "representation/alignment": 0.3,
        "representation/uniformity": -2.0,
        "representation/embedding_spread": 0.4,
        "speed/cells_per_second": 4.0,
        "speed/input_wait": 0.0,
    }


def test_tensorboard_hides_steps_of_a_killed_run_after_its_checkpoint(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    log.record(6, 1, TRAINING)
    log.close()
    (first,) = (tmp_path / "tensorboard").iterdir()
    monkeypatch.setattr(tensorboard, "time", SimpleNamespace(time=lambda: 1.0, monotonic=float))
    log = open_log(tmp_path, first_step=4)  # the clock was set back meanwhile
    log.record(5, 1, TRAINING)
    log.close()
    assert sorted((tmp_path / "tensorboard").iterdir())[0] == first
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [1, 5]


def warnings_of(log, capsys, *metrics):
    """Number of warnings printed while these rows are recorded."""
    for step, row in enumerate(metrics, 1):
        log.record(step, 1, TRAINING | row)
    return capsys.readouterr().err.count("may be collapsing")


def test_a_collapse_is_reported_once(tmp_path, capsys):
    log = open_log(tmp_path)
    dead = HEALTHY | {"embedding_spread": 0.003}
    assert warnings_of(log, capsys, HEALTHY, HEALTHY) == 0
    assert warnings_of(log, capsys, dead, dead, *[IN_ONE_POINT] * 5) == 1
    log.close()
    assert [row.get("collapse_warning") for row in rows(tmp_path)[:5]] == [None] * 2 + [1] + [
        None
    ] * 2
    (text,) = [v for tag, _, v in values(tmp_path) if tag == "warnings/text_summary"]
    assert b"config.optimizer.learning_rate" in text.tensor.string_val[0]


@pytest.mark.parametrize("kind", ["untrained", "cone", "good", "collapsed"])
def test_only_a_collapsed_representation_is_reported(tmp_path, capsys, kind):
    """Projections of an encoder that is untrained, in a narrow cone, trained well, or collapsed."""
    rng = np.random.default_rng(0)
    cells, noise = rng.normal(size=(64, 16)), rng.normal(size=(2, 64, 16))
    common = 10 * rng.normal(size=16)
    z1, z2 = {
        "untrained": noise,  # not recognised, but spread
        "cone": common + cells + 0.1 * noise,  # close together, but recognised
        "good": cells + 0.1 * noise,
        "collapsed": common + 1e-3 * noise,
    }[kind]
    _, found = nt_xent.contrast(jnp.asarray(z1), jnp.asarray(z2), 0.1)
    metrics = {name: float(value) for name, value in found.items()}
    log = open_log(tmp_path, minibatch_size=64)
    assert warnings_of(log, capsys, *[metrics] * 6) == (kind == "collapsed")
    log.close()


class FakeWandb:
    """Replaces the library: records its calls, and fails in those named by `fails`."""

    __spec__ = SimpleNamespace(origin="here")

    def __init__(self, fails=()):
        self.fails, self.begun, self.logged = fails, [], []
        self.Settings, self.Image, self.url = dict, np.asarray, "https://wandb/run"
        self.define_metric = lambda *_, **__: None

    def _try(self, name):
        if name in self.fails:
            raise RuntimeError(f"no {name}\ntoday")

    def init(self, **arguments):
        self._try("server")
        self.begun.append(arguments)
        return self

    def log(self, values):
        self._try("log")
        self.logged.append(values)

    def alert(self, **_):
        self._try("alert")

    def finish(self):
        self._try("finish")


def run_with(monkeypatch, folder, library):
    monkeypatch.setitem(sys.modules, "wandb", library)
    (folder / "config.json").write_text('{"seed": 3}')
    log = open_log(folder, wandb="cells")
    log.record(2, 1, TRAINING)
    log.pictures("views", np.zeros((4, 4, 3), np.uint8), 0)
    log.record_epoch(2, 1, TRAINING)
    log.close()


def test_weights_and_biases_get_the_same_rows_and_resume_the_same_run(tmp_path, monkeypatch):
    library = FakeWandb()
    run_with(monkeypatch, tmp_path, library)
    run_with(monkeypatch, tmp_path, library)
    first, second = library.begun
    assert first["id"] == second["id"]
    assert (first["project"], first["config"], first["resume"]) == ("cells", {"seed": 3}, "allow")
    assert library.logged[0] == {"train/loss": 2.0, "train/contrastive_accuracy": 0.5, "step": 2}
    assert library.logged[1]["views"].shape == (4, 4, 3)
    (tmp_path / "wandb.json").write_text('{"project": "cells", "id": "../up"}')
    run_with(monkeypatch, tmp_path, library)
    assert library.begun[2]["id"].isalnum()


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (["server"], "no server today; the run continues without it"),
        (["log", "finish"], "no log today; the run continues without it"),
        (["finish"], "no finish today"),
    ],
)
def test_weights_and_biases_never_stop_a_run(tmp_path, monkeypatch, capsys, fails, message):
    run_with(monkeypatch, tmp_path, FakeWandb(fails))
    assert len(rows(tmp_path)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("failed") == 1


OFFLINE = """
import numpy as np
from etils import epath
from cellclr_jax.objectives.nt_xent import NTXent
from cellclr_jax.training import log as logs
log = logs.RunLog(epath.Path("run"), NTXent(), first_step=0, total_steps=9, minibatch_size=4,
                  steps_per_epoch=3, wandb="cells")
log.record(2, 1, {"loss": 2.0})
log.pictures("views", np.zeros((4, 4, 3), np.uint8), 0)
log.close()
"""


@pytest.mark.slow
def test_weights_and_biases_without_a_network(tmp_path):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("needs the extra: pip install -e '.[wandb]'")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    environment = os.environ | places | {"WANDB_MODE": "offline"}
    # In a separate process, which waits at its end until everything is written.
    command = [sys.executable, "-c", OFFLINE]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=1800)
    (written,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    assert b"train/loss" in written.read_bytes()
    assert list(tmp_path.glob("run/wandb/offline-run-*/files/media/images/views_*.png"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["run"]


@pytest.mark.parametrize("folder", [None, Path("nowhere")])
def test_weights_and_biases_that_are_not_installed_are_named(monkeypatch, folder):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadUse, match=r"pip install -e '\.\[wandb\]'"):
        open_log(folder, wandb="cells")
