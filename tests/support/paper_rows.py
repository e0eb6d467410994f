"""The rows of the paper's tables, as launch/paper_tables.tsv has them."""

from support.launch_house import ROOT

ROWS = [
    line.split("\t")
    for line in (ROOT / "launch" / "paper_tables.tsv").read_text().splitlines()
    if not line.startswith("#")
]
BASE = "--config=configs/simclr_paper.py:resnet50"
