"""Progress in a log file, one line per tenth of the work; counts in words."""

import re

from cellclr_jax.console import Progress, plural


def test_each_tenth_has_a_line(capsys):
    with Progress(200, True, unit="field") as progress:
        for _ in range(100):
            progress.step(cells=3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0] for line in lines] == ["20", "40", "60", "80", "100"]
    assert re.fullmatch(r"100/200 fields, 300 cells, [\d,.]+ fields/s, 00:00 left", lines[-1])


def test_one_is_singular_and_thousands_are_separated():
    assert [plural(n, "field") for n in (0, 1, 2_000)] == ["0 fields", "1 field", "2,000 fields"]


def test_bytes_are_scaled_and_may_be_subtracted(capsys):
    with Progress(1_000_000, True, unit="byte", task="downloaded", scaled=True) as progress:
        for count in (-200_000, 200_000, 500_000, -300_000, 800_000):
            progress.step(units=count)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "500k/1.00M bytes downloaded",
        "1.00M/1.00M bytes downloaded",
    ]


def test_nothing_is_printed_if_not_requested(capsys):
    with Progress(10, False) as progress:
        progress.step()
    assert capsys.readouterr().err == ""
