"""Makes small evaluations, cells and pages for the tests of the report."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd

from cellclr_jax.data.minibatches import Cells
from cellclr_jax.pages.crop_strips import treatment_pictures
from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.measures.measure import Measured
from cellclr_jax.profiling.report.metrics_json import Results
from cellclr_jax.profiling.report.page import render_report
from cellclr_jax.profiling.single_cells import CellEvaluation, Sample
from cellclr_jax.profiling.single_cells.probes import Probe, ProbeScore

HOSTILE = "<script>alert(1)</script>"
QUOTED = '"onmouseover="alert(1)'
CLOSING = "</script><b>'"


def make_wells(seed=0, weeks=3, moas=4, doses=(0.1, 1.0, 10.0), dims=6, names=None, noise=0.6):
    """Makes profiles of two compounds per mechanism in different weeks, two wells per dose."""
    rng = np.random.default_rng(seed)
    rows, values = [], []
    directions = rng.normal(size=(moas, dims))
    for week in range(weeks):
        for well in range(5):
            rows.append((f"Week{week}_1", f"A{well}", f"Week{week}", "DMSO", 0.0, "DMSO"))
            values.append(rng.normal(size=dims))
    for compound in range(2 * moas):
        week, moa = compound % weeks, compound % moas
        name = (names or {}).get(compound, f"c{compound}")
        for number, dose in enumerate(doses):
            for well in range(2):
                place = f"{compound}{number}{well}"
                rows.append((f"Week{week}_1", place, f"Week{week}", name, dose, f"m{moa}"))
                values.append(directions[moa] * (1 + number) + noise * rng.normal(size=dims))
    columns = ["plate", "well", "batch", "compound", "concentration", "moa"]
    table = pd.DataFrame(rows, columns=columns)
    return pd.concat([table, pd.DataFrame(values).add_prefix("cellclr_")], axis=1)


class Images:
    """Crops in memory, as a stand-in for a dataset."""

    def __init__(self, pixels):
        self.pixels = pixels

    def read(self, rows):
        return self.pixels[rows]


def make_cells(wells, each=4, side=24, channels=("dna", "tubulin", "actin"), seed=0):
    """Makes cells with random pixels for every well."""
    table = wells[["plate", "well", "batch", "compound", "concentration", "moa"]]
    table = table.loc[table.index.repeat(each)].reset_index(drop=True)
    shape = (side, side, len(channels))
    pixels = np.random.default_rng(seed).integers(0, 4000, (len(table), *shape), np.uint16)
    image = {"shape": list(shape), "dtype": "uint16", "channels": list(channels)}
    return Cells(Path(), Images(pixels), table, {"image": image})


def words_of(page):
    """Extracts the text of a page, without data, style and script."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def make_cell_evaluation(names=("round", "flat"), classifiers=("knn", "logistic")):
    """Makes scores of single cells; they are undefined for fewer than two classes."""
    sample = Sample(np.arange(1020), "label", np.empty(0), pd.DataFrame(), 1020, 0, {})
    score = ProbeScore(0.8, 0.8, dict.fromkeys(names, 0.9), (0.8,))
    classes = dict(zip(names, (1000, 20), strict=False))
    undefined = "one class" if len(names) < 2 else ""
    scores = {} if undefined else dict.fromkeys(classifiers, score)
    probe = Probe(scores, classes, {}, 1020, folds=5, chance=0.5, undefined=undefined)
    return CellEvaluation(sample, "plate", {"trained": probe}, {})


def make_history():
    return pd.DataFrame(
        {
            "step": [5, 10, 10, 15, 20, 20],
            "epoch": [1, 1, 1, 2, 2, 2],
            "loss": [5, 4, np.nan, 3, 2, np.nan],
            "lr": [0.1, 0.2, np.nan, 0.1, 0, np.nan],
            "validation_loss": [np.nan, np.nan, 4.5, np.nan, np.nan, 2.5],
        }
    )


def hostile_page():
    wells = make_wells(names={0: HOSTILE, 1: QUOTED, 2: CLOSING}, noise=2.0)
    wells["moa"] = wells["moa"].replace({"m0": HOSTILE, "m1": QUOTED})
    wells["plate"] = wells["plate"].replace({"Week0_1": CLOSING})
    found = evaluate(wells)
    undefined = {"activity": Measured({"undefined": HOSTILE})}
    scores = {name: replace(one, measures=undefined) for name, one in found.scores.items()}
    cells = make_cells(wells, channels=(HOSTILE, QUOTED, CLOSING))
    return render_report(
        Results(
            replace(found, scores=scores, notes=[HOSTILE]),
            details={"step": 3, "note": HOSTILE},
            pictures=treatment_pictures(cells, "DMSO"),
            history=make_history().assign(**{f"online_{HOSTILE}": 0.5}),
            provenance={HOSTILE: {CLOSING: QUOTED}},
        )
    )
