"""Reads the rows of the paper's tables from launch/paper_tables.tsv."""

from support.launch_scripts import ROOT

ROWS = [
    line.split("\t")
    for line in (ROOT / "launch" / "paper_tables.tsv").read_text().splitlines()
    if not line.startswith("#")
]
BASE = "--config=configs/simclr_paper.py:resnet50"
