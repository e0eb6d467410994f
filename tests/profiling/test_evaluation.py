"""The whole evaluation: golden numbers, undefined scores, errors."""

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import tables
from cellclr_jax.profiling.evaluation import Protocol, evaluate
from cellclr_jax.profiling.report import metrics_json

GOLDEN = {
    ("none", 1.0): ((88, 103), (63, 92)),
    ("whitening", 1.0): ((96, 103), (68, 92)),
    ("tvn", 1.0): ((95, 103), (67, 92)),
    ("whitening", 0.01): ((94, 103), (67, 92)),
    ("tvn", 0.01): ((85, 103), (64, 92)),
}


def scores_of(evaluation):
    """The scores as metrics.json has them."""
    return metrics_json.describe(metrics_json.Results(evaluation))["scores"]


def planted(seed=0, moas=3, weeks=4, noise=0.1, dims=6):
    """Wells whose profile is their MoA's direction plus noise: a perfect embedding."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(moas, dims))
    rows, values = [], []
    for week in range(weeks):
        for well in range(6):
            rows.append((week, f"A{well:02d}", "DMSO", 0.0, "DMSO"))
            values.append(rng.normal(size=dims) * noise)
        for kind in range(moas):
            compound = f"c{kind}{week % 2}"
            for well in range(2):
                rows.append((week, f"B{kind}{well}", compound, 1.0 + week, f"m{kind}"))
                values.append(directions[kind] + rng.normal(size=dims) * noise)
    table = pd.DataFrame(rows, columns=["week", "well", "compound", "concentration", "moa"])
    table.insert(0, "plate", [f"Week{week + 1}_1" for week in table.pop("week")])
    names = [f"cellclr_{i:04d}" for i in range(dims)]
    return pd.concat([table, pd.DataFrame(values, columns=names)], axis=1)


@pytest.fixture(scope="module")
def real(shared):
    folder = shared / "data" / "bbbc021"
    return tables.read_profiles(
        folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz",
        image_csv=folder / "BBBC021_v1_image.csv",
        moa_csv=folder / "BBBC021_v1_moa.csv",
    )


def test_an_unknown_control_is_an_error():
    with pytest.raises(BadUse, match="no well has this compound"):
        evaluate(planted(), Protocol(control="Foo"))


@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_golden_numbers_of_real_profiles(real, ridge):
    found = evaluate(real.table, Protocol(standardize="controls", regularization=ridge))
    assert found.data["features"] == 516
    assert (found.data["wells"], found.data["control_wells"]) == (632, 330)
    for name, scores in found.scores.items():
        wanted = GOLDEN[name, 1.0 if name == "none" else ridge]
        counts = [(score.correct, score.total) for score in (scores.nsc, scores.nscb)]
        assert tuple(counts) == wanted, name
        assert scores.nsc.unanswerable == scores.nscb.unanswerable == 0
    left_out = metrics_json.describe_protocol(found)["left_out"]
    assert left_out == ["Cholesterol-lowering", "Kinase inhibitors"]


def test_golden_numbers_do_not_depend_on_row_order_or_on_other_treated_wells(real):
    shuffled = real.table.sample(frac=1, random_state=0)
    protocol = Protocol(standardize="controls")
    wanted = scores_of(evaluate(real.table, protocol))
    assert scores_of(evaluate(shuffled, protocol)) == wanted


def test_a_numeric_compound_id_changes_nothing(real):
    codes = pd.factorize(real.table["Metadata_Compound"])[0]
    protocol = Protocol(standardize="controls")
    names = ["compound_id", "mystery"]
    leak = pd.DataFrame(dict.fromkeys(names, 1000.0 * codes))
    found = evaluate(pd.concat([real.table, leak], axis=1), protocol)
    assert found.scores["none"].nsc.correct == 88
    assert all(any(name in note for note in found.notes) for name in names)


def test_metrics_have_the_agreed_form():
    found = scores_of(evaluate(planted()))
    assert list(found) == ["none", "whitening", "tvn"]
    assert list(found["none"]) == ["nsc", "nscb", "drop"]
    assert found["none"]["drop"] == 0.0
    for kind in ("nsc", "nscb"):
        score = found["none"][kind]
        assert list(score) == ["correct", "total", "accuracy", "interval", "chance", "p"]
        assert (score["correct"], score["total"], score["accuracy"]) == (12, 12, 1.0)
        # Six compounds, all of them right: Wilson's interval of six.
        assert score["interval"] == [pytest.approx(6 / (6 + 1.959964**2)), 1.0]
        assert 0 < score["chance"] < 0.5
    # Of 90 ways to deal three mechanisms to six compounds 6 are right, within two batches 6 of 36.
    assert found["none"]["nsc"]["p"] == pytest.approx(6 / 90, abs=0.01)
    assert found["none"]["nscb"]["p"] == pytest.approx(6 / 36, abs=0.02)


def test_without_controls_corrections_are_undefined_and_standardising_is_an_error():
    wells = planted()
    wells = wells[wells["compound"] != "DMSO"]
    found = evaluate(wells)
    assert found.scores["none"].nsc.correct == 12
    described = scores_of(found)["whitening"]
    assert described["drop"] is None
    assert described["nsc"]["accuracy"] is None
    assert "at least 2 are needed" in described["nsc"]["undefined"]
    assert found.scores["tvn"].nsc.undefined == found.scores["whitening"].nsc.undefined
    with pytest.raises(BadData, match="standardisation by controls"):
        evaluate(wells, Protocol(standardize="controls"))


def test_a_batch_without_controls_makes_only_tvn_undefined():
    wells = planted()
    lacking = (wells["compound"] == "DMSO") & (wells["plate"] == "Week2_1")
    found = evaluate(wells[~lacking])
    assert found.scores["whitening"].nsc.correct == 12
    assert "batch 'Week2' has 0 control wells" in found.scores["tvn"].nscb.undefined


def test_unannotated_wells_are_not_used_and_counted():
    wells = planted()
    extra = wells.iloc[-2:].assign(compound="other", moa="", well=["C1", "C2"])
    found = evaluate(pd.concat([wells, extra]))
    assert found.data["wells"] == len(wells)
    assert "not used: 2 wells without a MoA" in found.notes


def test_invalid_tables_are_errors():
    wells = planted()
    with pytest.raises(BadData, match="listed twice"):
        evaluate(pd.concat([wells, wells.iloc[:1]]))
    with pytest.raises(BadData, match="nothing to score"):
        evaluate(wells[wells["compound"] == "DMSO"])
    with pytest.raises(BadData, match="missing or not finite"):
        evaluate(wells.assign(cellclr_0001=np.nan))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"statistic": "mode"}, "statistic 'mode'"),
        ({"batches": "week2"}, "batches 'week2'"),
        ({"standardize": "wells"}, "standardize 'wells'"),
        ({"aggregate": "plate"}, "aggregate 'plate'"),
        ({"regularization": -1.0}, "regularization -1"),
        ({"regularization": float("nan")}, "regularization nan"),
        ({"control": ""}, "name of the controls"),
        ({"corrections": ("whitening",)}, "none and others of none, pca_whitening"),
        ({"corrections": ("none", "coral")}, "corrections none, coral"),
        ({"robust": True}, "robust needs standardize"),
    ],
)
def test_invalid_settings_are_errors(settings, message):
    with pytest.raises(BadUse, match=message):
        Protocol(**settings)


def test_named_features_are_used_whatever_their_names():
    wells = planted(dims=3)
    own = [name for name in wells if name.startswith("cellclr_")]
    names = ["Intensity_Mean_target", "Intensity_Mean_index", "Intensity_Mean_dna"]
    renamed = wells.rename(columns=dict(zip(own, names, strict=True)))
    assert evaluate(renamed).data["features"] == 1
    found = evaluate(renamed, features=names)
    assert found.data["features"] == 3
    assert scores_of(found) == scores_of(evaluate(wells))
    assert not any("not used as features" in note for note in found.notes)


def test_corrections_and_standardisations_are_choices():
    wells = planted(dims=40)  # of more features than its 24 controls span
    chosen = Protocol(standardize="plates", robust=True, corrections=("none", "pca_whitening"))
    found = evaluate(wells, chosen)
    assert list(found.scores) == ["none", "pca_whitening"]
    assert found.scores["pca_whitening"].nsc.total == 12
    described = metrics_json.describe_protocol(found)
    assert described["standardize"] == "plates"
    assert described["robust"] is True
    only_tvn = evaluate(wells, Protocol(corrections=("none", "tvn"))).scores["tvn"]
    assert only_tvn.nsc.correct == evaluate(wells).scores["tvn"].nsc.correct


def test_a_note_warns_of_a_regularization_far_above_the_variance():
    wells = planted()  # features of a deviation of 0.1 over the controls
    drowned = [note for note in evaluate(wells).notes if "far below λ = 1" in note]
    assert len(drowned) == 1
    assert "whitening and tvn change little" in drowned[0]
    for protocol in (
        Protocol(standardize="controls"),
        Protocol(relative_regularization=True),
        Protocol(regularization=0.001),
        Protocol(corrections=("none",)),
    ):
        assert not any("far below λ" in note for note in evaluate(wells, protocol).notes)
