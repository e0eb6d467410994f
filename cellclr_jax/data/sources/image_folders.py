"""Folders of single-cell images of any origin, labelled by their subfolders or by a table."""

from collections.abc import Sequence

from cellclr_jax.console import plural
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.readers import SUFFIXES, without_parts_of_sets
from cellclr_jax.data.readers.find_files import cell_ids, list_cells
from cellclr_jax.data.sources.single_cells import Cell, check_plates, make_source, tabled_cells
from cellclr_jax.data.sources.source import Request, Source
from cellclr_jax.data.tables.cells import CellTable, read_cell_table
from cellclr_jax.data.tables.csv import some_names, stream_rows
from cellclr_jax.errors import BadUse


def folder_fields(request: Request) -> Source:
    """Cells of a folder of PNG, TIFF or NPY images: 1 to 8 channels of 8 or 16 bits, any size.

    Each file is a cell. With `request.pages` 'cells', each image or unnamed page of a TIFF is one;
    of an OME file set, all files are one. Thumbnails are left out.

    Without a table, a cell's label is the path of its folder below the input, '' where it lies in
    the input itself; where all do, there are no labels. With a table, its columns are the
    metadata; see `cells.CELL_COLUMNS` for what they may be called. A cell's id is its path
    below the input, without the suffix unless two cells would be called alike.

    Args:
      request: its inputs, channels, pages, z, plates, options `labels_csv` and `label_columns`.

    Raises:
      BadUse: an input is no folder or holds no image; the channels declared are not as many as the
        images have, or more than 8; a plate or a column of the table that is not there.
      BadData: images of 8 and of 16 bits, or none that can be read; a table that cannot be read,
        or does not fit the images.
    """
    labels_csv = request.options.get("labels_csv")
    found, left_out = list_cells(request.inputs, SUFFIXES, filter(None, [labels_csv]))
    files = without_parts_of_sets(found)
    if parts := len(found) - len(files):
        left_out.append(f"{plural(parts, 'file')} read as channels of others (OME file sets)")
    named_files = list(zip(files, cell_ids(files), strict=True))
    chosen = request.options.get("label_columns", ())
    if labels_csv:
        names = request.names()
        table = read_cell_table(labels_csv, chosen=_label_columns(chosen), names=names)
        check_plates(request, [table])
        joined = tabled_cells(request, table, named_files)
        return make_source(
            request,
            joined.cells,
            tuple(table.metadata),
            layout="stacked",
            tables={"label table": table.path},
            problems=joined.problems,
            lost=joined.lost,
            absent_plates=joined.absent_plates,
            notes=[*_columns_used(labels_csv, table), *names.notes],
            left_out=left_out,
        )
    if chosen:
        raise BadUse("--label_columns says nothing without --labels_csv")
    if request.plates:
        raise BadUse(
            f"--plates={','.join(request.plates)}: folders tell no plates; a table does, "
            "--labels_csv"
        )
    columns = ("label",) if any(one.folder for one in files) else ()
    return make_source(
        request,
        [Cell((one.folder,) if columns else (), name, one.file) for one, name in named_files],
        columns,
        layout="stacked",
        left_out=left_out,
    )


def _label_columns(given: Sequence[str]) -> dict[str, str]:
    """The columns of --label_columns=<what>=<column>,… by what they are."""
    columns: dict[str, str] = {}
    for text in given:
        name, _, column = text.partition("=")
        if name not in ("file", *COLUMNS) or not column:
            raise BadUse(
                f"--label_columns={text}: <what>=<column> was expected, what is one of file, "
                f"{', '.join(COLUMNS)}"
            )
        columns[name] = column
    return columns


def _columns_used(path: str, table: CellTable) -> list[str]:
    """Says which columns of a table are used, where some are not."""
    header = [name for name in next(stream_rows(path))[1] if name.strip()]
    # One column names the images.
    unused = len(header) - 1 - len(table.columns)
    if unused <= 0:
        return []
    used = ", ".join(table.columns) or "none but that of the images"
    return [
        f"{path}: columns used: {used}; {unused} of {some_names(header)} are not "
        "(--label_columns=label=NAME takes one that has another name)"
    ]
