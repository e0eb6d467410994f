"""Metrics go on after a crash, and reach a work directory that cannot be appended to."""

import json

import pytest
from etils import epath

from cellclr_jax import logs

TRAINING = {"loss": 2.0, "contrastive_accuracy": 0.5}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def open_log(folder, first_step=0):
    return logs.RunLog(epath.Path(folder), first_step=first_step, total_steps=10, minibatch_size=4)


def test_rows_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    log = open_log(tmp_path)
    for step in (2, 4, 6):
        log.record(step, 1, TRAINING)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    log = open_log(tmp_path, first_step=4)
    log.record(5, 1, TRAINING)
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 5]


def test_validation_rows_are_named_and_printed(tmp_path, capsys):
    log = open_log(tmp_path)
    log.record_epoch(4, 2, TRAINING)
    log.close()
    assert rows(tmp_path)[0] == {
        "step": 4,
        "epoch": 2,
        "validation_loss": 2.0,
        "validation_contrastive_accuracy": 0.5,
    }
    assert "epoch 2  step 4/10  validation loss 2.0000" in capsys.readouterr().err


def test_a_bucket_gets_whole_files_at_each_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "is_local", lambda path: False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    log = open_log(tmp_path, first_step=1)
    log.record(2, 1, TRAINING)
    assert [row["step"] for row in rows(tmp_path)] == [1]
    log.record_epoch(2, 1, TRAINING)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2]
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("path", "local"), [("gs://bucket/run", False), ("/tmp/run", True), ("runs/demo", True)]
)
def test_buckets_are_told_from_folders(path, local):
    assert logs.is_local(epath.Path(path)) == local


def test_a_process_that_must_not_write_writes_nothing(tmp_path, capsys):
    log = logs.RunLog(None, first_step=0, total_steps=10, minibatch_size=4)
    log.record(2, 1, TRAINING)
    log.record_epoch(2, 1, TRAINING)
    log.advance()
    log.close()
    assert capsys.readouterr().err == ""
