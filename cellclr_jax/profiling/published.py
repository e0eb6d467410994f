"""Published scores on BBBC021, each with the source of its numbers."""

from collections.abc import Iterable

# method | kind | NSC | NSCB | drop | source; percent as printed, '–' if no source has a number.
_ROWS = """
Ljosa 2013, factor analysis | hand-made features | 94 | 77 | 17 | abstract; second-hand
Singh 2014, illumination correction | hand-made features | 90 | 85 | 5 | from memory, unverified
Ando 2017, TVN | transfer | 96 | 95 | 1 | from memory, unverified
Caicedo 2018 | weak labels | 95 | 89 | 6 | from memory, unverified
Lafarge 2019, VAE+ | unsupervised | 92 to 93 | 82 | – | abstract; from memory
Janssens 2021, UMM Discovery | unsupervised | 97 | 85 | 12 | NSC: its abstract; rest: memory
Perakis 2021, SimCLR | unsupervised | 96 | 95 | 1 | inferred from the abstract's differences
WS-DINO 2022, compound labels | weak labels | 98 | 96 | 2 | abstract
DINO without labels | unsupervised | 92 | 95 | – | a training log of WS-DINO's code
"""
# These 32 of the 38 annotated compounds identify the dataset, whichever plates were evaluated;
# compounds of simulated plates have other names.
_COMPOUNDS = frozenset(
    "ALLN AZ-A AZ-C AZ-J AZ-U AZ138 AZ258 AZ841 MG-132 PD-169316 PP-2 alsterpaullone anisomycin "  # noqa: SIM905
    "bryostatin camptothecin chlorambucil cisplatin colchicine cyclohexamide demecolcine docetaxel "
    "emetine etoposide floxuridine lactacystin methotrexate mevinolin/lovastatin mitoxantrone "
    "nocodazole simvastatin taxol vincristine".split()
)


def published_scores() -> list[dict[str, str]]:
    """Lists methods: method, kind, nsc, nscb, drop (percent and points, as text), source."""
    keys = ("method", "kind", "nsc", "nscb", "drop", "source")
    rows = [map(str.strip, line.split("|")) for line in _ROWS.strip().splitlines()]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def is_bbbc021(compounds: Iterable[str]) -> bool:
    """Whether at least 80 % of the treated compounds are BBBC021's."""
    names = set(compounds)
    return bool(names) and len(names & _COMPOUNDS) >= 0.8 * len(names)
