"""Files, figures and console output of an evaluation."""

import io
import json
import re
import struct
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadUse
from cellclr_jax.pages import colour_and_symbol
from cellclr_jax.profiling import report
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.report import Results, figures
from cellclr_jax.profiling.report.metrics_json import UNFINISHED


def wells(seed=0, weeks=3, moas=4):
    rng = np.random.default_rng(seed)
    rows = []
    for week in range(weeks):
        rows += [(f"Week{week}_1", f"A{i}", "DMSO", 0.0, "DMSO") for i in range(3)]
        rows += [(f"Week{week}_1", f"B{m}", f"<c{m}{week}>", 1.0, f"<b>m{m}") for m in range(moas)]
    table = pd.DataFrame(rows, columns=["plate", "well", "compound", "concentration", "moa"])
    values = rng.normal(size=(len(rows), 5))
    return pd.concat([table, pd.DataFrame(values).add_prefix("cellclr_")], axis=1)


@pytest.fixture(scope="module")
def found():
    return evaluate(wells(), measures=["mechanisms"])


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "eval" / "10"
    results = Results(found, baselines={"untrained": evaluate(wells(1))}, details={"step": 10})
    return out, report.write_evaluation(out, results)


@pytest.fixture
def no_figures(monkeypatch):
    """Replaces the slow maps and figures."""
    monkeypatch.setattr(figures, "place", lambda *args, **kwargs: {})
    monkeypatch.setattr(figures, "draw", lambda *args: iter([("tsne_none.png", b"map")]))


def test_evaluation_writes_exactly_these_files(written):
    out, metrics = written
    corrections = ("none", "whitening", "tvn")
    names = {f"{kind}_{c}.png" for kind in ("confusion", "tsne") for c in corrections}
    names |= {"metrics.json", "wells.parquet", "treatments.parquet", "neighbours.csv"}
    names |= {"report.html", "mechanisms.csv"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics["scores"]) == set(corrections)
    assert set(metrics["baselines"]["untrained"]["tvn"]) == {"nsc", "nscb", "drop"}
    assert metrics["protocol"]["regularization"] == 1.0
    assert metrics["run"]["step"] == 10
    treatments = pd.read_parquet(out / "treatments.parquet")
    assert len(treatments) == 12
    assert {"Metadata_Compound", "Metadata_MoA", "Metadata_Batch"} <= set(treatments)
    assert len(pd.read_parquet(out / "wells.parquet")) == 21
    assert len(pd.read_csv(out / "neighbours.csv")) == 3 * 2 * 12


def test_figures_are_large_enough_to_read(written):
    for path in written[0].glob("*.png"):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 700, path.name
        assert height > 300, path.name


def test_few_treatments_have_no_map(tmp_path, no_figures):
    (tmp_path / "tsne_none.png").write_bytes(b"")
    (tmp_path / UNFINISHED).touch()
    metrics = report.write_evaluation(tmp_path, Results(evaluate(wells(weeks=1))))
    assert "4 treatments: a map needs at least 8" in metrics["figures_skipped"]["tsne_none.png"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '"no_map":"4 treatments: a map needs at least 8"' in page
    assert "undefined: no treatment has another compound of its MoA" in page


def test_evaluation_without_controls_is_written(tmp_path, no_figures):
    table = wells()
    metrics = report.write_evaluation(
        tmp_path, Results(evaluate(table[table["compound"] != "DMSO"]))
    )
    assert metrics["scores"]["tvn"]["nsc"]["accuracy"] is None
    assert "needed" in metrics["figures_skipped"]["confusion_tvn.png"]
    assert "confusion_none.png" not in metrics["figures_skipped"]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_evaluation_with_other_settings_is_replaced_only_with_overwrite(
    tmp_path, found, no_figures
):
    (tmp_path / "notes.txt").write_text("mine")
    report.write_evaluation(tmp_path, Results(found, details={"step": 1, "checkpoint": "last"}))
    assert (tmp_path / "mechanisms.csv").exists()
    plain = Results(evaluate(wells()), details={"step": 1, "checkpoint": "best"})
    report.write_evaluation(tmp_path, plain)
    assert not (tmp_path / "mechanisms.csv").exists(), "measures are not settings"
    before = files_of(tmp_path)
    other = Results(evaluate(wells(), Protocol(standardize="controls")), details={"step": 2})
    message = r"other settings \(standardize: was 'none', now 'controls'; step: was 1"
    with pytest.raises(BadUse, match=message):
        report.write_evaluation(tmp_path, other)
    with pytest.raises(BadUse, match=message):
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


def test_files_of_others_are_not_replaced(tmp_path, found):
    (tmp_path / "wells.parquet").write_text("mine")
    with pytest.raises(BadUse, match=r"wells\.parquet exists, but no metrics\.json"):
        report.write_evaluation(tmp_path, Results(found), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["wells.parquet"]


def test_killed_evaluation_leaves_its_scores_and_is_replaced(tmp_path, found, no_figures):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "place", stop)
        with pytest.raises(KeyboardInterrupt):
            report.write_evaluation(tmp_path, Results(found))
    left = files_of(tmp_path)
    tables = {"wells.parquet", "treatments.parquet", "neighbours.csv", "mechanisms.csv"}
    assert left.keys() == {"metrics.json", UNFINISHED} | tables
    assert json.loads(left["metrics.json"])["scores"]["tvn"]["nsc"]["total"] == 12
    report.write_evaluation(tmp_path, Results(evaluate(wells(1))))
    assert "report.html" in files_of(tmp_path)
    assert not {"mechanisms.csv", UNFINISHED} & files_of(tmp_path).keys()


def test_console_table_has_counts_percentages_and_reasons(found):
    out = io.StringIO()
    report.print_scores(found, baselines={"untrained": evaluate(wells(weeks=1))}, file=out)
    text = out.getvalue()
    assert re.search(r"trained +none +\d+/12 \(\d+\.\d %\) +\d+/12 \(\d+\.\d %\) +-?\d+\.\d", text)
    assert re.search(r"untrained +none +undefined +undefined +undefined", text)
    where = "untrained, none; untrained, whitening; untrained, tvn"
    assert f"{where}: NSCB is undefined: all treatments lie in one batch" in text
    assert "protocol: aggregate well, standardize none, robust no" in text
    assert "regularization 1, relative regularization no, statistic median, batches joined" in text


def test_first_96_colours_and_symbols_are_distinct():
    assert len({colour_and_symbol(i) for i in range(96)}) == 96


def test_figures_of_too_many_treatments_are_skipped(monkeypatch, tmp_path, found):
    monkeypatch.setattr(figures, "MOST_TREATMENTS", 10)
    monkeypatch.setattr(figures, "_MOST_MECHANISMS", 3)
    metrics = report.write_evaluation(tmp_path, Results(found))
    assert metrics["figures_skipped"]["tsne_none.png"] == "12 treatments: a map has at most 10"
    confusion = "4 mechanisms: a matrix has at most 3"
    assert metrics["figures_skipped"]["confusion_tvn.png"] == confusion
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="scores">' in page
    assert '<section id="map">' not in page
    assert "12 treatments: a map has at most 10" in page


def test_umap_is_a_second_map_on_request(monkeypatch, found):
    """With a stand-in for UMAP, which takes half a minute to compile."""

    class FakeUMAP:
        def __init__(self, *, metric, n_neighbors, random_state, n_jobs):
            assert (metric, n_neighbors, random_state) == ("cosine", 10, 0)

        def fit_transform(self, values):
            return values[:, :2].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FakeUMAP))
    monkeypatch.setattr(figures, "find_spec", lambda name: name == "umap")
    maps = figures.place_treatments(found.treatments, with_umap=True)
    assert list(maps) == ["t-SNE", "UMAP"]
    assert maps["UMAP"].shape == maps["t-SNE"].shape == (12, 2)
