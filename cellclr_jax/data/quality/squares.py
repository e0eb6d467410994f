"""Tables of what the plate maps draw: wells and fields with their places and their words."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.counting import plural
from cellclr_jax.data.quality.look import number, safe, short
from cellclr_jax.data.quality.measures import columns_of
from cellclr_jax.data.quality.plate_grid import PlateGrid, lay_out, parse_wells

# Squares of a picture, the blank ones between plates among them: the page grows by tens of bytes
# for each. With more fields than that a square is a well, and then the last plates are left out.
_MOST_SQUARES = 40_000
# Letters of a compound's or a mechanism's name that are shown on hover.
_LONGEST = 60
_WELL = ["plate", "row", "column"]


def place_fields(fields: pd.DataFrame) -> tuple[PlateGrid, pd.DataFrame] | None:
    """Finds the wells of fields.

    Args:
      fields: the table of fields.

    Returns:
      The grid, which has the first plates where there are too many, and the fields that lie in a
      well of it, with `plate` (its number in the grid), `row` and `column` in it, and `part`, the
      field's number in its well; None where there is no well.
    """
    if "well" not in fields:
        return None
    places = parse_wells(fields["well"].tolist())
    known = places[:, 0] >= 0
    if not known.any():
        return None
    placed, places = fields[known].copy(), places[known]
    names = placed["plate"].astype(str) if "plate" in placed else pd.Series("", placed.index)
    placed["plate"], plates = pd.factorize(names)
    placed["row"], placed["column"] = places.T
    grid = lay_out(plates.tolist(), places, _MOST_SQUARES)
    placed = placed[placed["plate"] < len(grid.plates)]
    sites = placed.sort_values("site", kind="stable") if "site" in placed else placed
    return grid, placed.assign(part=sites.groupby(_WELL).cumcount())


def well_squares(
    grid: PlateGrid, placed: pd.DataFrame, channels: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Wells, as `plate_maps.draw_wells` takes them.

    Args:
      grid, placed: of `place_fields`.
      channels: names.

    Returns:
      The wells: cells of all their fields, means of the measures, words; and the fields with one
      more column, `well`, the row of theirs.
    """
    measures = [name for name in columns_of(channels) if name in placed]
    # A well without a usable field has no count: it is not one without cells.
    counted = placed.assign(cells=placed["cells"].where(placed["problem"] == ""))
    grouped = counted.groupby(_WELL, sort=False)
    wells = grouped[measures].mean()
    wells["cells"] = grouped["cells"].sum(min_count=1)
    wells = wells.reset_index()
    first = grouped.head(1).to_dict("records")
    wells["label"] = [
        _label(grid.plates[plate], row, cells, fields)
        for plate, row, cells, fields in zip(
            wells["plate"], first, wells["cells"], grouped.size(), strict=True
        )
    ]
    return wells, placed.assign(well=grouped.ngroup())


def field_squares(grid: PlateGrid, placed: pd.DataFrame, outliers: pd.DataFrame) -> pd.DataFrame:
    """Fields, as `plate_maps.draw_fields` takes them; of too many fields, the worst of each well.

    Args:
      grid: of `place_fields`.
      placed: of `well_squares`.
      outliers: of `outliers.find_outliers`, with the index of the fields' table.
    """
    sites = placed["site"] if "site" in placed else placed["part"] + 1
    fields = placed.assign(
        outlier=outliers["reason"].reindex(placed.index).fillna(""),
        skipped=placed["problem"],
        note=[
            f"field {site}: {'not usable' if problem else plural(cells, 'cell')}"
            for site, cells, problem in zip(sites, placed["cells"], placed["problem"], strict=True)
        ],
    )
    squares = grid.size[0] * grid.size[1] * (int(fields["part"].max()) + 1)
    return fields if squares <= _MOST_SQUARES else _worst_of_wells(fields)


def _worst_of_wells(fields: pd.DataFrame) -> pd.DataFrame:
    """One row a well: the least focus, the most saturation, a reason if any field has one."""
    rules: dict[Hashable, str] = dict.fromkeys(("plate", "row", "column", "field"), "first")
    rules |= dict.fromkeys(("outlier", "skipped"), "max")  # text comes after no text
    rules |= {name: "min" for name in fields if str(name).startswith("focus_")}
    rules |= {name: "max" for name in fields if str(name).startswith("saturated_")}
    worst = fields.groupby("well", sort=False).agg(rules).reset_index()
    return worst.assign(part=0, note="the worst of its fields")


def _label(plate: str, row: Mapping[Hashable, Any], cells: float, fields: int) -> str:
    """What is known of a well, for a figure: lines of safe text."""
    dose = row.get("concentration")
    treatment = [
        str(row.get("compound") or ""),
        f"{number(dose)} µM" if dose and dose == dose else "",
    ]
    known = [" ".join(filter(None, treatment)), row.get("moa"), row.get("label")]
    count = "no usable field" if np.isnan(cells) else plural(int(cells), "cell")
    lines = [
        f"<b>{safe(' '.join(filter(None, (plate, str(row['well'])))))}</b>",
        *(safe(short(str(text), _LONGEST)) for text in known if text),
        f"{count} in {plural(fields, 'field')}",
    ]
    return "<br>".join(lines)
