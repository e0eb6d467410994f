"""Single cells: the sample, its classes, scores and files."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from support.corrected_wells import planted

from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import report
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.profiles import has_treatments, sites_of
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.single_cells import (
    KeptCells,
    cell_table,
    describe_cells,
    draw_sample,
    evaluate_cells,
)

KINDS = ("trained", "untrained", "intensity")


def cells(count=120, **columns):
    return pd.DataFrame({"cell_id": [f"c{i}" for i in range(count)]} | columns)


def labelled(count=120, classes=("a", "<b>"), **columns):
    return cells(count, **columns, label=np.resize(classes, count))


def evaluated(table, **settings):
    sample = draw_sample(table, with_treatments=False, **settings)
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(len(sample.rows), 5)) for name in KINDS}
    classes = np.unique(sample.labels, return_inverse=True)[1]
    features["trained"][:, 0] += 20 * classes
    return evaluate_cells(sample, features, classifiers=("knn", "logistic"))


def plates(count=120):
    """Two plates that hold the same of any two classes that alternate."""
    return np.where(np.arange(count) < count // 2, "p1", "p2")


def test_each_kind_of_features_is_scored_on_the_same_cells():
    found = describe_cells(evaluated(labelled(plate=plates())))
    assert list(found["scores"]) == list(KINDS)
    assert found["label_column"] == "label"
    assert found["classes"] == {"<b>": 60, "a": 60}
    assert (found["cells"], found["folds"], found["grouped_by"]) == (120, 2, "plate")
    assert found["chance"] == 0.5
    assert "undefined" not in found
    for kind in ("knn", "logistic"):
        scores = {name: found["scores"][name][kind]["balanced_accuracy"] for name in KINDS}
        assert scores["trained"] > 0.9
        assert scores["untrained"] < 0.75
    assert json.loads(json.dumps(found)) == found


def test_without_plates_a_note_warns_of_images_on_both_sides():
    found = describe_cells(evaluated(labelled()))
    assert found["grouped_by"] is None
    assert found["folds"] == 5
    assert any("both training and test" in note for note in found["notes"])
    by_batch = describe_cells(evaluated(labelled(plate=np.full(120, "p"), batch=plates())))
    assert by_batch["grouped_by"] == "batch"
    assert not by_batch["notes"]


def test_large_datasets_are_sampled_with_a_note():
    found = evaluated(labelled(900, ("a", "b", "")), size=200)
    assert len(found.sample.rows) == 200
    described = describe_cells(found)
    assert (described["cells"], described["labelled"]) == (200, 600)
    assert "200 of 600 cells with a class were used" in described["notes"]
    assert "not used: 300 cells without a class" in described["notes"]
    again = draw_sample(labelled(900, ("a", "b", "")), with_treatments=False, size=200)
    np.testing.assert_array_equal(again.rows, found.sample.rows)


def test_any_column_can_be_the_class_and_whole_compounds_be_held_out():
    compounds = np.resize(["c0", "c1", "c2", "c3"], 240)
    moas = np.where(np.isin(compounds, ["c0", "c1"]), "m", "n")
    table = cells(240, plate=plates(240), compound=compounds, moa=moas)
    sample = draw_sample(table, with_treatments=True, label="moa")
    # Features of the compound predict its mechanism only if the compound was seen.
    features = {"trained": np.eye(4)[np.unique(compounds, return_inverse=True)[1]]}
    found = [
        evaluate_cells(sample, features, hold_out=whole, classifiers=["logistic"])
        for whole in ("plate", "compound", "nothing", "auto")
    ]
    scores = [one.probes["trained"].scores["logistic"].balanced_accuracy for one in found]
    assert [one.grouped_by for one in found] == ["plate", "compound", "", "plate"]
    assert scores[0] == scores[2] == scores[3] == 1.0
    assert scores[1] < 0.6
    with pytest.raises(BadUse, match="hold_out 'batch': the cells have plate, compound"):
        evaluate_cells(sample, features, hold_out="batch")
    with pytest.raises(BadUse, match="no such column; the cells have cell_id, plate"):
        draw_sample(table, with_treatments=True, label="target")


@pytest.mark.parametrize(
    ("columns", "with_treatments", "expected"),
    [
        ({"label": "ab", "moa": "ab"}, False, "label"),
        ({"label": "ab", "moa": "ab"}, True, "label"),
        ({"label": "aa", "moa": "ab"}, False, "moa"),
        ({"moa": ["", None], "compound": "ab"}, False, "compound"),
        ({"label": "aa"}, False, "label"),
        ({"plate": "ab"}, False, ""),
        ({"moa": "ab"}, True, None),
    ],
)
def test_the_class_is_the_label_or_without_treatments_moa_or_compound(
    columns, with_treatments, expected
):
    resized = {name: np.resize(np.array(list(v), object), 120) for name, v in columns.items()}
    sample = draw_sample(cells(**resized), with_treatments=with_treatments)
    assert (sample.label_column if sample else None) == expected


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (cells(), "neither labels nor treatments: there is nothing to score"),
        (labelled(classes=("a",)), "1 class with enough cells"),
        (labelled(classes=[f"image {i}" for i in range(120)]), "no classes with enough"),
    ],
)
def test_without_classes_there_is_a_table_and_a_reason(tmp_path, table, reason):
    found = evaluated(table)
    metrics = report.write_evaluation(tmp_path, report.Results(cells=found))
    assert reason in metrics["cells"]["undefined"]
    assert metrics["cells"]["scores"] == {}
    assert metrics["cells"]["cells"] == 120
    assert len(metrics["cells"]["left_out"]) <= 50
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == 120
    assert reason in (tmp_path / "report.html").read_text(encoding="utf-8")
    printed = io.StringIO()
    report.print_cells(found, file=printed)
    assert reason in printed.getvalue()


def test_features_that_are_not_finite_are_refused_and_their_cell_is_named():
    sample = draw_sample(labelled(), with_treatments=False)
    features = {"trained": np.zeros((120, 2)), "untrained": np.zeros((120, 2))}
    features["untrained"][7, 1] = np.inf
    with pytest.raises(BadData, match="the untrained features of cell 'c7'"):
        evaluate_cells(sample, features)


def test_the_table_of_cells_has_all_metadata_and_features():
    values = {name: np.resize(np.array([1, 2], kind), 120) for name, kind in COLUMNS.items()}
    found = evaluated(cells(**values))
    table = cell_table(found, "trained")
    metadata = [column for column in table if column.startswith("Metadata_")]
    assert metadata[:3] == ["Metadata_CellId", "Metadata_Plate", "Metadata_Well"]
    assert {"Metadata_MoA", "Metadata_Label"} <= set(metadata)
    assert len(metadata) == len(COLUMNS) + 1
    features = table[[f"cellclr_{i:04d}" for i in range(5)]]
    assert (features.dtypes == np.float32).all()
    np.testing.assert_allclose(features, found.features["trained"], rtol=1e-6)
    assert table["Metadata_CellId"].tolist() == [f"c{i}" for i in range(120)]


def test_the_report_and_the_console_show_the_scores(tmp_path):
    found = evaluated(labelled(plate=plates()))
    metrics = report.write_evaluation(
        tmp_path, report.Results(cells=found, details={"channels": ["x"]})
    )
    assert set(metrics) == {"profiles", "notes", "run", "cells"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "report.html",
        "cells.parquet",
    }
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    printed = io.StringIO()
    report.print_cells(found, file=printed)
    for name in KINDS:
        share = 100 * found.probes[name].scores["knn"].balanced_accuracy
        assert f"{share:.1f} %" in page
        assert f"{share:.1f} %" in printed.getvalue()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "grouped by plate" in page


def test_scores_of_treatments_and_of_cells_are_written_together(tmp_path):
    scored = evaluate(planted(weeks=2), Protocol(corrections=("none",)))
    only_treatments = report.write_evaluation(tmp_path, report.Results(scored))
    results = report.Results(scored, cells=evaluated(labelled()))
    both = report.write_evaluation(tmp_path, results, overwrite=True)
    assert {name: both[name] for name in only_treatments} == only_treatments
    assert set(both) - set(only_treatments) == {"cells"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Treatment map</h2>" in page
    assert "Single-cell classification" in page
    of_cells = report.Results(cells=evaluated(labelled()))
    with pytest.raises(BadUse, match="treatments were scored there"):
        report.write_evaluation(tmp_path, of_cells)
    report.write_evaluation(tmp_path, of_cells, overwrite=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"metrics.json", "report.html", "cells.parquet"}


def test_settings_of_cells_are_settings_of_an_evaluation(tmp_path):
    table = labelled(plate=plates(), batch=plates())
    sample = draw_sample(table, with_treatments=False)
    features = {"trained": np.random.default_rng(0).normal(size=(120, 3))}
    plate, nothing = (
        evaluate_cells(sample, features, hold_out=whole, classifiers=["knn"])
        for whole in ("plate", "nothing")
    )
    report.write_evaluation(tmp_path, report.Results(cells=plate))
    with pytest.raises(BadUse, match="grouped_by: was 'plate', now None"):
        report.write_evaluation(tmp_path, report.Results(cells=nothing))


def test_kept_cells_are_those_that_were_chosen_whatever_the_minibatches():
    features = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    chosen = np.array([0, 7, 8, 31, 49])
    for size in (1, 8, 50):
        kept = KeptCells(chosen)
        for start in range(0, 50, size):
            rows = np.arange(start, min(start + size, 50))
            kept.add(rows, {"trained": features[rows]})
        np.testing.assert_array_equal(kept.features["trained"], features[chosen])


WELLS = {"plate": "p", "well": "A1", "compound": "drug", "moa": "kinase"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"batch": "b", "site": 1, "concentration": 3.0}, True),
        ({"compound": "dmso"}, False),
        ({"compound": ""}, False),
        ({"moa": ""}, False),
        ({"moa": None}, False),
        ({"well": None}, False),
    ],
)
def test_treatments_are_annotated_compounds_in_wells(changed, expected):
    table = cells(4, **(WELLS | changed))
    assert has_treatments(table, "DMSO") == expected
    for name in WELLS:
        assert not has_treatments(table.drop(columns=name), "DMSO")


def test_sites_hold_what_is_known_and_leave_out_what_belongs_to_no_well():
    table = cells(6, **WELLS).assign(
        well=["A2", "A1", "A2", "", "A1", "A2"], replicate=1, label=list("abcdef")
    )
    sites, index = sites_of(table)
    assert index.tolist() == [1, 0, 1, -1, 0, 1]
    assert sites["Metadata_Well"].tolist() == ["A1", "A2"]
    assert sites["Metadata_Batch"].tolist() == ["", ""]
    assert sites["Metadata_Concentration"].isna().all()
    assert "Metadata_Label" not in sites
    sites, index = sites_of(table.assign(site=[1, 1, 2, 1, 1, 2], concentration=np.nan))
    assert index.tolist() == [1, 0, 2, -1, 0, 2]
    assert sites["Metadata_Site"].tolist() == [1, 1, 2]
    assert sites["Metadata_Concentration"].isna().all()


def test_a_site_with_two_compounds_is_not_taken_for_one():
    table = cells(4, **WELLS).assign(compound=["x", "y", "x", "y"])
    sites, index = sites_of(table)
    assert sites["Metadata_Compound"].tolist() == ["x", "y"]
    assert index.tolist() == [0, 1, 0, 1]
