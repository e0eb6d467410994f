"""Folders of single-cell images of any origin, labelled by their subfolders or by a table."""

from collections.abc import Sequence

from cellclr_jax.console import plural
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.readers import SUFFIXES, without_parts_of_sets
from cellclr_jax.data.readers.find_files import CellFile, cell_ids, list_cells
from cellclr_jax.data.sources.single_cells import Cell, make_source, tabled_source
from cellclr_jax.data.sources.source import Request, Source
from cellclr_jax.data.tables.cells import read_cell_table
from cellclr_jax.data.tables.csv import some_names, stream_rows
from cellclr_jax.errors import BadUse


def folder_fields(request: Request) -> Source:
    """Cells of a folder of PNG, TIFF or NPY images: 1 to 16 channels of 8 or 16 bits, any size.

    Each file is a cell. With `request.pages` 'cells', each image or unnamed page of a TIFF is one;
    of an OME file set, all files are one. Thumbnails are left out.

    Without a table, a cell's label is the path of its folder below the input, '' in the input
    itself; if all files lie there, there are no labels. With a table, its columns are the metadata;
    see `cells.CELL_COLUMNS` for their names. A cell's id is its path below the input, without the
    suffix if all ids stay distinct.

    Args:
      request: its inputs, channels, pages, z, plates, options `labels_csv` and `label_columns`.

    Raises:
      BadUse: an input is not a folder or holds no image; the images have another number of
        channels, or more than 8; a plate or a column of the table does not exist.
      BadData: images of 8 and of 16 bits, or none is readable; the table is unreadable, or does not
        fit the images.
    """
    labels_csv = request.options.get("labels_csv")
    found, left_out = list_cells(request.inputs, SUFFIXES, filter(None, [labels_csv]))
    files = without_parts_of_sets(found)
    if parts := len(found) - len(files):
        left_out.append(f"{plural(parts, 'file')} read as channels of others (OME file sets)")
    chosen = request.options.get("label_columns", ())
    if labels_csv:
        return _labelled_by_table(request, labels_csv, _label_columns(chosen), files, left_out)
    if chosen:
        raise BadUse("--label_columns has no effect without --labels_csv")
    if request.plates:
        raise BadUse(
            f"--plates={','.join(request.plates)}: folders do not name plates; a table does, "
            "--labels_csv"
        )
    columns = ("label",) if any(one.folder for one in files) else ()
    cells = [
        Cell((one.folder,) if columns else (), name, one.file)
        for one, name in zip(files, cell_ids(files), strict=True)
    ]
    return make_source(request, cells, columns, layout="stacked", left_out=left_out)


def _labelled_by_table(
    request: Request,
    path: str,
    chosen: dict[str, str],
    files: Sequence[CellFile],
    left_out: list[str],
) -> Source:
    """Builds the source of images that a table lists; its notes name unused columns."""
    names = request.names()
    table = read_cell_table(path, chosen=chosen, names=names)
    notes = list(names.notes)
    header = [name for name in next(stream_rows(path))[1] if name.strip()]
    unused = len(header) - 1 - len(table.columns)  # one column names the images
    if unused > 0:
        used = ", ".join(table.columns) or "none but that of the images"
        notes.insert(
            0,
            f"{path}: columns used: {used}; {unused} of {some_names(header)} are not "
            "(--label_columns=label=NAME takes one that has another name)",
        )
    return tabled_source(
        request,
        [table],
        files,
        layout="stacked",
        tables={"label table": table.path},
        notes=notes,
        left_out=left_out,
    )


def _label_columns(texts: Sequence[str]) -> dict[str, str]:
    """Parses --label_columns=<what>=<column>,… into columns by <what>."""
    columns: dict[str, str] = {}
    for text in texts:
        name, _, column = text.partition("=")
        if name not in ("file", *COLUMNS) or not column:
            raise BadUse(
                f"--label_columns={text}: <what>=<column> was expected, what is one of file, "
                f"{', '.join(COLUMNS)}"
            )
        columns[name] = column
    return columns
