"""What an evaluation leaves behind: files, figures, page and console table."""

import io
import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from cellclr_jax.errors import BadUse
from cellclr_jax.pages import look
from cellclr_jax.profiling import report
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.report import Results, figures
from cellclr_jax.profiling.report.metrics_json import UNFINISHED


def wells(seed=0, weeks=3, moas=4, shift=0.0):
    rng = np.random.default_rng(seed)
    rows = []
    for week in range(weeks):
        rows += [(f"Week{week}_1", f"A{i}", "DMSO", 0.0, "DMSO") for i in range(3)]
        rows += [
            (f"Week{week}_1", f"B{m}", f"<c{m}{week}>", 1.0, f"<b>m{m}</b> & co")
            for m in range(moas)
        ]
    table = pd.DataFrame(rows, columns=["plate", "well", "compound", "concentration", "moa"])
    values = rng.normal(size=(len(rows), 5)) + shift
    return pd.concat([table, pd.DataFrame(values).add_prefix("cellclr_")], axis=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "eval" / "10"
    baselines = {"untrained": evaluate(wells(1)), "intensity": evaluate(wells(2))}
    details = {"step": 10, "note": "<script>"}
    results = Results(evaluate(wells()), baselines=baselines, details=details)
    return out, report.write_evaluation(out, results)


def test_every_file_is_there_and_none_besides(written):
    out, _ = written
    names = {
        f"{kind}_{c}.png" for kind in ("confusion", "tsne") for c in ("none", "whitening", "tvn")
    }
    tables = {
        "metrics.json",
        "wells.parquet",
        "treatments.parquet",
        "neighbours.csv",
        "report.html",
    }
    assert {path.name for path in out.iterdir()} == names | tables


def test_metrics_hold_scores_baselines_and_protocol(written):
    out, metrics = written
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics["scores"]) == {"none", "whitening", "tvn"}
    assert set(metrics["baselines"]) == {"untrained", "intensity"}
    assert set(metrics["baselines"]["intensity"]["tvn"]) == {"nsc", "nscb", "drop"}
    assert metrics["protocol"]["regularization"] == 1.0
    assert metrics["run"]["step"] == 10


def test_tables_are_pycytominers(written):
    out, _ = written
    treatments = pd.read_parquet(out / "treatments.parquet")
    assert len(treatments) == 12
    assert {"Metadata_Compound", "Metadata_MoA", "Metadata_Batch"} <= set(treatments)
    assert len(pd.read_parquet(out / "wells.parquet")) == 21
    neighbours = pd.read_csv(out / "neighbours.csv")
    assert len(neighbours) == 3 * 2 * 12


def test_the_page_is_self_contained_and_escaped(written):
    page = (written[0] / "report.html").read_text(encoding="utf-8")
    page = page.replace(get_plotlyjs(), "")
    assert "data:image/png" not in page, "the page draws maps and matrices itself"
    assert page.count("<script>") == 2, "Plotly's and its own"
    assert not re.search(r"(src|href)=['\"](?!data:|#)", page)
    for name in ("trained", "untrained", "intensity"):
        assert page.count(f"<td>{name}</td>") == 3
    assert "&lt;script&gt;" in page


def test_figures_are_large_enough_to_read(written):
    for path in written[0].glob("*.png"):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 700, path.name
        assert height > 300, path.name


def test_few_treatments_have_no_map_and_the_reason_is_written(tmp_path):
    report.write_evaluation(tmp_path, Results(evaluate(wells())))
    assert (tmp_path / "tsne_none.png").exists()
    few = Results(evaluate(wells(weeks=1)))
    metrics = report.write_evaluation(tmp_path, few, overwrite=True)
    assert "4 treatments: a map needs at least 8" in metrics["figures_skipped"]["tsne_none.png"]
    assert not (tmp_path / "tsne_none.png").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '"no_map":"4 treatments: a map needs at least 8"' in page
    assert "undefined: no treatment has another compound of its MoA" in page


def test_an_evaluation_without_controls_is_written_too(tmp_path):
    table = wells()
    found = evaluate(table[table["compound"] != "DMSO"])
    metrics = report.write_evaluation(tmp_path, Results(found))
    assert metrics["scores"]["tvn"]["nsc"]["accuracy"] is None
    assert "needed" in metrics["figures_skipped"]["confusion_tvn.png"]
    assert (tmp_path / "confusion_none.png").exists()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_evaluation_with_other_settings_is_replaced_only_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "place", lambda *args, **kwargs: {})
    monkeypatch.setattr(figures, "draw", lambda *args: iter([("tsne_none.png", b"map")]))
    (tmp_path / "notes.txt").write_text("mine")
    measured = evaluate(wells(), measures=["mechanisms"])
    report.write_evaluation(tmp_path, Results(measured, details={"step": 1, "checkpoint": "last"}))
    assert (tmp_path / "mechanisms.csv").exists()
    plain = Results(evaluate(wells()), details={"step": 1, "checkpoint": "best"})
    report.write_evaluation(tmp_path, plain)
    assert not (tmp_path / "mechanisms.csv").exists(), "the same settings give the same scores"
    before = files_of(tmp_path)
    other = Results(evaluate(wells(), Protocol(standardize="controls")), details={"step": 2})
    wanted = r"other settings \(standardize: 'none' there, 'controls' here; step: 1 there, 2 here\)"
    with pytest.raises(BadUse, match=wanted):
        report.write_evaluation(tmp_path, other)
    with pytest.raises(BadUse, match=wanted):
        report.check_settings(tmp_path, other.evaluation.protocol, other.details, overwrite=False)
    assert files_of(tmp_path) == before
    more = replace(plain, details=plain.details | {"converted": True})
    for first, second in ((plain, more), (more, plain)):
        report.write_evaluation(tmp_path / "settings", first, overwrite=True)
        with pytest.raises(BadUse, match=r"other settings .*converted"):
            report.write_evaluation(tmp_path / "settings", second)
    report.check_settings(tmp_path, Protocol(), plain.details, overwrite=False)
    report.check_settings(tmp_path, Protocol(statistic="mean"), plain.details, overwrite=True)
    metrics = report.write_evaluation(tmp_path, other, overwrite=True)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(BadUse, match=r"metrics\.json: not a readable record"):
        report.write_evaluation(tmp_path, other)
    report.write_evaluation(tmp_path, other, overwrite=True)


def test_files_that_no_evaluation_wrote_are_not_replaced(tmp_path):
    (tmp_path / "wells.parquet").write_text("mine")
    with pytest.raises(BadUse, match=r"wells\.parquet exists, but no metrics\.json"):
        report.write_evaluation(tmp_path, Results(evaluate(wells())), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["wells.parquet"]


def test_a_killed_evaluation_leaves_its_scores_which_the_next_replaces(tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    found = Results(evaluate(wells(), measures=["mechanisms"]))
    with monkeypatch.context() as patch:
        patch.setattr(figures, "place", stopped)
        with pytest.raises(KeyboardInterrupt):
            report.write_evaluation(tmp_path, found)
    left = files_of(tmp_path)
    tables = {"wells.parquet", "treatments.parquet", "neighbours.csv", "mechanisms.csv"}
    assert left.keys() == {"metrics.json", UNFINISHED} | tables
    assert json.loads(left["metrics.json"])["scores"]["tvn"]["nsc"]["total"] == 12
    report.write_evaluation(tmp_path, Results(evaluate(wells(1))))
    assert "report.html" in files_of(tmp_path)
    assert not {"mechanisms.csv", UNFINISHED} & files_of(tmp_path).keys()


def test_console_table_has_counts_percentages_and_reasons():
    out = io.StringIO()
    report.print_scores(
        evaluate(wells()), baselines={"untrained": evaluate(wells(weeks=1))}, file=out
    )
    text = out.getvalue()
    assert re.search(r"trained +none +\d+/12 \(\d+\.\d %\) +\d+/12 \(\d+\.\d %\) +-?\d+\.\d", text)
    assert re.search(r"untrained +none +undefined +undefined +undefined", text)
    where = "untrained, none; untrained, whitening; untrained, tvn"
    assert f"{where}: NSCB is undefined: all treatments lie in one batch" in text
    assert "protocol: aggregate well, standardize none, robust no" in text
    assert "regularization 1, relative regularization no, statistic median, batches joined" in text


def test_no_two_of_96_labels_look_alike():
    assert len({look(i) for i in range(96)}) == 96


def test_more_than_anybody_reads_is_not_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "MOST_TREATMENTS", 10)
    monkeypatch.setattr(figures, "_MOST_MECHANISMS", 3)
    metrics = report.write_evaluation(tmp_path, Results(evaluate(wells())))
    assert metrics["figures_skipped"]["tsne_none.png"] == "12 treatments: a map has at most 10"
    confusion = "4 mechanisms: a matrix has at most 3"
    assert metrics["figures_skipped"]["confusion_tvn.png"] == confusion
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="scores">' in page
    assert '<section id="map">' not in page
    assert "12 treatments: a map has at most 10" in page


def test_umap_is_a_second_map_where_it_is_asked_for():
    """Uncompiled, in a process of its own: compiling UMAP takes longer than all other tests."""
    pytest.importorskip("umap")
    script = (
        "from test_report import evaluate, figures, wells\n"
        "treatments = evaluate(wells(moas=3)).treatments\n"
        "for _ in range(2):\n"
        "    found = figures.place_treatments(treatments, with_umap=True)\n"
        "    print(list(found), found['UMAP'].shape, found['UMAP'].round(4).tolist())\n"
    )
    tests = Path(__file__).parents[1]
    places = [str(tests.parent), str(tests), str(tests / "profiling")]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("['t-SNE', 'UMAP'] (9, 2) ")
    assert "nan" not in first
