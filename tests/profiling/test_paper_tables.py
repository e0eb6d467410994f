"""Tables of the paper: rows with and without scores, damaged files, pairs of augmentations."""

import json
import math

import pandas as pd
import pytest
from support.binaries import run as run_binary

from cellclr_jax import paper_tables
from cellclr_jax.errors import BadData, BadUse


def score(correct, total):
    """A score as in metrics.json; undefined without queries."""
    correct = correct if total else None
    return {"correct": correct, "total": total, "accuracy": correct / total if total else None}


def put_run(folder, run, *, operations=(), scores=None, compounds=("sim-a", "sim-b")):
    """A run's config and, with scores (NSC, NSCB correct of 10 and 8), its evaluation."""
    place = folder / run
    place.mkdir(parents=True, exist_ok=True)
    config = {
        "model": {"encoder": "cnn"},
        "minibatch_size": 64,
        "epochs": 2,
        "operations": list(operations),
        "views": {"one": {}, "two": {}},
    }
    (place / "config.json").write_text(json.dumps(config))
    if scores is None:
        return
    rates = [100.0, 90.0, 500.0]
    history = [{"step": 1, "loss": 4.0, "cells_per_second": rate} for rate in rates]
    history.append({"validation_loss": 3.5})
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, history)) + "\n")
    where = place / "scores" / "as_published"
    where.mkdir(parents=True, exist_ok=True)
    found = {
        name: {"nsc": score(nsc, 10), "nscb": score(nscb, 8), "drop": 10 * nsc - 12.5 * nscb}
        for name, (nsc, nscb) in scores.items()
    }
    (where / "metrics.json").write_text(json.dumps({"scores": found, "run": {"step": 16}}))
    pd.DataFrame({"Metadata_Compound": compounds}).to_parquet(where / "treatments.parquet")
    (where / "scored").write_text("")


def put_rows(folder, *rows):
    lines = [
        "\t".join([table, row, str(seed), run, f"{run}/scores/as_published", "-", "-"])
        for table, row, seed, run in rows
    ]
    (folder / "rows.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path):
    put_rows(
        tmp_path,
        ("temperature", "0.1", 0, "base"),
        ("temperature", "0.5 | high", 0, "hot"),
        ("temperature", "1.0", 0, "never"),
        ("encoders", "CNN", 0, "base"),
    )
    put_run(tmp_path, "base", scores={"none": (7, 4), "tvn": (9, 8)})
    put_run(tmp_path, "hot")
    return tmp_path


def test_each_run_is_a_row_with_or_without_scores(runs):
    table = paper_tables.read_tables(runs)
    assert list(table["row"]) == ["0.1", "0.5 | high", "1.0", "CNN"]
    first = table.iloc[0]
    assert (first["none_nsc_correct"], first["none_nsc_total"]) == (7, 10)
    assert first["tvn_nscb_accuracy"] == 1
    assert first["none_drop"] == 20
    assert (first["loss"], first["cells_per_second"], first["operations"]) == (3.5, 100, "one+two")
    assert pd.isna(table.iloc[1]["step"])
    assert table.iloc[1]["encoder"] == "cnn"
    assert pd.isna(table.iloc[2]["step"])
    assert list(table.iloc[3][["none_nsc_correct", "run"]]) == [7, "base"]


def test_missing_rows_are_listed(runs):
    text = paper_tables.markdown(paper_tables.read_tables(runs), runs)
    assert "2 of 4 rows have scores. The compounds are not BBBC021's" in text
    assert "| 0.1 | 0 | cnn | 16 | 3.500 | 7/10 (70.0 %), 4/8 (50.0 %), 20.0 |" in text
    assert r"| 0.5 \| high | 0 | not scored yet |" in text
    assert text.index("## temperature") < text.index("## encoders")
    assert "Published" not in text


def test_published_scores_are_shown_for_bbbc021(runs):
    put_run(runs, "base", scores={"none": (7, 4)}, compounds=("taxol", "ALLN", "emetine"))
    text = paper_tables.markdown(paper_tables.read_tables(runs), runs)
    assert "The compounds are BBBC021's." in text
    assert "| Perakis 2021, SimCLR | unsupervised | 96 | 95 | 1 | inferred" in text


@pytest.fixture
def pairs(tmp_path):
    used = {"c": ("crop",), "b": ("blur",), "cb": ("crop", "blur"), "cj": ("crop", "jitter")}
    used |= {"all": ("crop", "blur", "jitter")}
    put_rows(tmp_path, *(("augmentations", run, 0, run) for run in used))
    for number, (run, operations) in enumerate(used.items(), 1):
        put_run(tmp_path, run, operations=operations, scores={"none": (number, number)})
    return tmp_path


def test_single_operations_are_the_diagonal(pairs):
    square = paper_tables.pair_scores(paper_tables.read_tables(pairs))["nsc"]
    assert list(square) == ["crop", "blur", "jitter"]
    want = [[10, 30, 40], [30, 20, math.nan], [40, math.nan, math.nan]]
    pd.testing.assert_frame_equal(
        square, pd.DataFrame(want, square.index, square.columns), check_dtype=False
    )


def test_seeds_of_a_pair_are_averaged(pairs):
    lines = (pairs / "rows.tsv").read_text()
    again = "augmentations\tcb\t1\tcb1\tcb1/scores/as_published\n"
    (pairs / "rows.tsv").write_text(lines + again)
    put_run(pairs, "cb1", operations=("blur", "crop"), scores={"none": (9, 1)})
    square = paper_tables.pair_scores(paper_tables.read_tables(pairs))["nsc"]
    assert square.loc["crop", "blur"] == square.loc["blur", "crop"] == 60


def test_the_binary_writes_tables_and_a_picture(pairs):
    done = run_binary("paper_tables", f"--runs={pairs}")
    assert done.returncode == 0, done.stderr
    assert {"tables.md", "tables.csv", "augmentations.png"} <= {p.name for p in pairs.iterdir()}
    assert (pairs / "augmentations.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(pairs / "tables.csv")) == 5


def test_incomplete_scores_are_ignored(runs):
    (runs / "base/scores/as_published/scored").unlink()
    table = paper_tables.read_tables(runs)
    assert table["step"].isna().all()
    assert "0 of 4 rows have scores." in paper_tables.markdown(table, runs)


def test_undefined_scores_are_shown(runs):
    path = runs / "base/scores/as_published/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["scores"]["tvn"] |= {"nscb": score(0, 0), "drop": None}
    path.write_text(json.dumps(metrics))
    text = paper_tables.markdown(paper_tables.read_tables(runs), runs)
    assert "9/10 (90.0 %), 0/0 (undefined), –" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base/config.json", b"{"),
        ("base/config.json", b"[]"),
        ("base/metrics.jsonl", b"\xff\xfe"),
        ("base/scores/as_published/metrics.json", b'{"a": 1}'),
    ],
)
def test_damaged_files_are_reported_and_other_rows_remain(runs, name, content):
    put_run(runs, "hot", scores={"none": (2, 1)})
    (runs / name).write_bytes(content)
    paper_tables.write_tables(runs)
    text = (runs / "tables.md").read_text()
    assert text.count("files of base/scores/as_published or its run cannot be read") == 2
    assert "| 0.5 \\| high | 0 | cnn | 16 |" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("scores",), []),
        (("scores", "tvn", "nsc", "correct"), 7.5),
        (("scores", "tvn", "nsc", "total"), None),
        (("scores", "tvn", "nscb", "accuracy"), "a"),
        (("run", "step"), None),
    ],
)
def test_damaged_scores_are_reported(runs, path, value):
    file = runs / "base/scores/as_published/metrics.json"
    content = inner = json.loads(file.read_text())
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    assert (paper_tables.read_tables(runs)["problem"] != "").tolist() == [True, False, False, True]


def test_damaged_treatments_leave_the_dataset_unknown(runs):
    (runs / "base/scores/as_published/treatments.parquet").write_bytes(b"PAR1")
    text = paper_tables.markdown(paper_tables.read_tables(runs), runs)
    assert "2 of 4 rows have scores. NSC, NSCB" in text


def test_damaged_lists_of_runs_are_reported(runs):
    with pytest.raises(BadUse, match=r"rows\.tsv: no such file"):
        paper_tables.write_tables(runs / "base")
    for content, message in (
        (b"one\ttwo\n", r"rows\.tsv, line 1: expected table, row, seed, run, scores"),
        (b"", r"rows\.tsv, line 1"),
        (b"\xff\xfe", r"rows\.tsv: not a table of runs"),
    ):
        (runs / "rows.tsv").write_bytes(content)
        with pytest.raises(BadData, match=message):
            paper_tables.read_tables(runs)
    assert run_binary("paper_tables").returncode == 2
