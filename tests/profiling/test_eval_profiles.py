"""`python -m cellclr_jax.eval --profiles`, as a person types it."""

import json

import numpy as np
import pandas as pd
from support import binaries


def evaluate(*flags):
    return binaries.run("eval", *flags)


def small(folder):
    """Two weeks, two MoAs of two compounds, controls; few enough that no map is drawn."""
    rng = np.random.default_rng(0)
    rows = [("Week1_1", "A1", "DMSO", 0, "DMSO"), ("Week1_1", "A2", "DMSO", 0, "DMSO")]
    rows += [("Week2_1", "A1", "DMSO", 0, "DMSO"), ("Week2_1", "A2", "DMSO", 0, "DMSO")]
    rows += [(f"Week{w}_1", f"B{m}", f"c{m}{w}", 3, f"m{m}") for w in (1, 2) for m in (1, 2)]
    table = pd.DataFrame(rows, columns=["plate", "well", "compound", "concentration", "moa"])
    values = rng.normal(size=(8, 3)) * 0.1 + np.array(
        [[len(r[4]) == 2 and r[4] == "m1"] * 3 for r in rows]
    )
    table[["f1", "f2", "f3"]] = values * [1, 2, -1]
    table.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def assert_one_line(result, status, *words):
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_real_profiles_give_the_golden_numbers(shared, tmp_path):
    folder = shared / "data" / "bbbc021"
    result = evaluate(
        f"--profiles={folder / 'ljosa_jbiomolscreen_2013_per_well_mean.csv.gz'}",
        f"--image_csv={folder / 'BBBC021_v1_image.csv'}",
        f"--moa_csv={folder / 'BBBC021_v1_moa.csv'}",
        "--standardize=controls",
        "--measures=none",
        f"--out={tmp_path / 'out'}",
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    counts = {
        name: tuple(f"{s[k]['correct']}/{s[k]['total']}" for k in ("nsc", "nscb"))
        for name, s in scores.items()
    }
    assert counts == {
        "none": ("88/103", "63/92"),
        "whitening": ("96/103", "68/92"),
        "tvn": ("95/103", "67/92"),
    }
    assert "96/103 (93.2 %)" in result.stdout


def test_sites_are_averaged_into_wells_and_flags_reach_the_protocol(tmp_path):
    table = pd.read_csv(small(tmp_path))
    both = pd.concat([table.assign(site=1), table.assign(site=2)]).assign(cellcount=9)
    both.to_csv(tmp_path / "sites.csv", index=False)
    result = evaluate(
        f"--profiles={tmp_path / 'sites.csv'}",
        f"--out={tmp_path / 'out'}",
        "--aggregate=site",
        "--statistic=mean",
        "--batches=disjoint",
        "--regularization=0.1",
        "--relative_regularization",
        "--left_out=m2",
    )
    assert result.returncode == 0, result.stderr
    assert "16 rows averaged into 8 wells" in result.stdout
    wanted = {
        "aggregate": "site",
        "statistic": "mean",
        "batches": "disjoint",
        "regularization": 0.1,
        "relative_regularization": True,
        "left_out": ["m2"],
        "standardize": "none",
    }
    protocol = json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"]
    assert wanted.items() <= protocol.items()
    wells = pd.read_parquet(tmp_path / "out" / "wells.parquet")
    assert wells["Metadata_CellCount"].tolist() == [18] * 8


def test_wrong_use_is_one_line_and_status_2(tmp_path):
    table = small(tmp_path)
    out = f"--out={tmp_path / 'out'}"
    assert_one_line(evaluate(out), 2, "--profiles", "--workdir")
    assert_one_line(evaluate(f"--profiles={table}"), 2, "--out")
    assert_one_line(evaluate(out, "--profiles=nowhere.csv"), 2, "nowhere.csv: no such file")
    assert_one_line(evaluate(out, f"--profiles={table}", "--standardize=wells"), 2, "wells")
    assert_one_line(evaluate(out, f"--profiles={table}", "--step=3"), 2, "--step")
    assert_one_line(evaluate(out, f"--profiles={table}", "--left_out=m7"), 2, "'m7'", "m1, m2")
    assert_one_line(evaluate(out, f"--profiles={table}", "--aggregate=site"), 2, "--aggregate")
    assert not (tmp_path / "out").exists()


def test_bad_data_is_one_line_and_status_1(tmp_path):
    table, path = pd.read_csv(small(tmp_path)), tmp_path / "bad.csv"
    table.assign(f2=table["f2"].mask(table.index == 3)).to_csv(path, index=False)
    result = evaluate(f"--profiles={path}", f"--out={tmp_path / 'out'}")
    assert_one_line(result, 1, str(path), "'f2'", "row 4", "line 5")
    # Rows that count their cells and name no site are whole wells, listed twice by mistake.
    pd.concat([table, table]).assign(Metadata_CellCount=9).to_csv(path, index=False)
    result = evaluate(f"--profiles={path}", f"--out={tmp_path / 'out'}")
    assert_one_line(result, 1, "well A1 of plate Week1_1 is listed twice")
