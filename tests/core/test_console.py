"""Progress of files in a log: a line for each tenth, also where one begins anew."""

import re

from cellclr_jax.console import FilesProgress

SIZES = {"a": 600, "b": 400}


def amounts(text):
    """What each line says is there."""
    return [int(amount) for amount in re.findall(r"^(\d+)\.?\d*B/", text, re.MULTILINE)]


def test_each_tenth_has_a_line(capsys):
    with FilesProgress(SIZES, {"a": 0, "b": 0}, True, task="fetched") as shown:
        for size in range(0, 401, 10):
            shown.reach("a", size)
            shown.reach("b", size)
        shown.end("b")
        shown.reach("a", 600)
        shown.end("a")
    told = capsys.readouterr().err
    assert amounts(told) == [100, 200, 300, 400, 500, 600, 700, 800]
    assert re.search(
        r"^1\.00kB/1\.00kB of 2 files fetched, .*B/s, 00:00 left\n$", told, re.MULTILINE
    )


def test_what_was_there_is_not_told_and_no_part_of_the_rate(capsys):
    with FilesProgress(SIZES, {"a": 600, "b": 0}, True, task="fetched") as shown:
        shown.reach("b", 0)
        assert capsys.readouterr().err == ""
        shown.reach("b", 100)
        assert amounts(capsys.readouterr().err) == [700]


def test_a_file_that_begins_anew_is_told_once(capsys):
    with FilesProgress(SIZES, {"a": 0, "b": 0}, True, task="fetched") as shown:
        for size in (300, 0, 100, 200, 300, 400):
            shown.reach("a", size)
    assert amounts(capsys.readouterr().err) == [300, 400]


def test_sizes_that_nobody_knows_do_no_harm(capsys):
    with FilesProgress({"a": 0}, {"a": 0}, True, task="fetched") as shown:
        shown.reach("a", 5000)
        shown.end("a")
        shown.end("a")
    assert "of 1 files fetched" in capsys.readouterr().err


def test_nothing_is_told_unasked(capsys):
    with FilesProgress(SIZES, {"a": 0, "b": 0}, False, task="fetched") as shown:
        shown.reach("a", 600)
    assert capsys.readouterr().err == ""
