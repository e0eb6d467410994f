"""Makes tables and images of datasets for tests of the quality page."""

import json
import re

import numpy as np
import pandas as pd

from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.data.quality.page import Content

CHANNELS = ("dna", "tubulin", "actin")
SIDE = 24
IMAGES = np.random.default_rng(0).integers(0, 4000, (64, SIDE, SIDE, 3), np.uint16)


def fields_table(plates=2, wells=("B02", "B03", "C04"), sites=4, seed=0):
    """Makes a table of fields with random measures and metadata like BBBC021's."""
    rng = np.random.default_rng(seed)
    treatments = (("DMSO", 0.0), ("taxol", 0.3), ("latrunculin", 10.0))
    rows = []
    for plate in (f"Week1_{100 + number}" for number in range(plates)):
        for number, well in enumerate(wells):
            compound, concentration = treatments[number % 3]
            rows += [
                {
                    "field": f"{plate}/{well}/s{site}",
                    "plate": plate,
                    "well": well,
                    "site": site,
                    "compound": compound,
                    "concentration": concentration,
                    "moa": "",
                    "cells": int(rng.integers(8, 12)),
                    "problem": "",
                }
                for site in range(1, sites + 1)
            ]
    table = pd.DataFrame(rows)
    for column in columns_of(CHANNELS):
        usual = 0 if column.startswith("saturated") else 100
        table[column] = usual * rng.normal(1, 0.03, len(table))
    return table


def make_content(fields, columns=("plate", "well", "compound", "concentration", "moa"), **changes):
    """Makes content of the page with a random crop for each cell of the fields."""
    known = [name for name in columns if name in fields]
    unusable = fields[fields["problem"] != ""]
    values = {
        "name": "bbbc021/annotated",
        "channels": CHANNELS,
        "fields": fields,
        "cells": fields.loc[fields.index.repeat(fields["cells"]), known].reset_index(drop=True),
        "skipped": list(zip(unusable["field"], unusable["problem"], strict=True)),
        "read": lambda rows: IMAGES[np.asarray(rows) % len(IMAGES)],
    }
    return Content(**values | changes)


def figures_of(page):
    """Decodes the figures of a page."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return [json.loads(figure) for figure in found]


def squares_of(figure, trace=0):
    """Lists (value, hover text, (row, column)) of each square of a map."""
    texts = figure["data"][0]["customdata"]
    values = figure["data"][trace]["z"]
    return [
        (values[y][x], text, (y, x))
        for y, row in enumerate(texts)
        for x, text in enumerate(row)
        if text
    ]
