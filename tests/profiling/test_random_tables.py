"""The whole evaluation equals plain loops on random tables with ties and special cases."""

import statistics

import numpy as np
import pandas as pd
import pytest

from cellclr_jax.profiling.evaluation import evaluate
from cellclr_jax.profiling.protocol import Protocol

RIDGE = 0.3


def screen(seed):
    """Wells with ties, MoAs of one compound and of one batch, and a treatment in all batches."""
    rng = np.random.default_rng(seed)
    rows = []
    for plate in range(6):
        batch = f"Week{plate // 2 + 9}"  # Week9, Week10, Week11
        place = iter(range(100))
        rows += [(f"{batch}_{plate}", f"A{next(place)}", "DMSO", 0.0, "", batch) for _ in range(5)]
        everywhere = ("taxol", 0.3, "microtubules")
        for compound in (everywhere, *((f"c{c}", 1.0, f"m{c % 3}") for c in drawn(rng, 9))):
            rows.append((f"{batch}_{plate}", f"B{next(place)}", *compound, batch))
        if plate >= 4:
            rows.append((f"{batch}_{plate}", "Z1", f"late{plate}", 2.0, "of one batch", batch))
        rows.append((f"{batch}_{plate}", "Z2", "lone", 1.0 + plate % 2, "of one compound", batch))
    table = pd.DataFrame(
        rows, columns=["plate", "well", "compound", "concentration", "moa", "batch"]
    )
    values = rng.normal(size=(len(rows), 4))
    if seed % 2:
        values = np.round(values)  # ties, and wells of zeros
    return pd.concat([table, pd.DataFrame(values).add_prefix("cellclr_")], axis=1)


def drawn(rng, count):
    return sorted(set(rng.integers(0, count, size=7).tolist()))


def is_dmso(table):
    return (table["compound"] == "DMSO").to_numpy()


def moment(rows):
    return sum(np.outer(row, row) for row in rows) / len(rows)


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix + RIDGE * np.eye(len(matrix)))
    return vectors @ np.diag(values**exponent) @ vectors.T


def naive_profiles(table, correction):
    """[N, D] corrected wells, by the definitions of `protocol.md`."""
    values = table.filter(like="cellclr_").to_numpy()
    if correction == "none":
        return values
    controls = values[is_dmso(table)]
    centred = values - controls.mean(axis=0)
    variances, vectors = np.linalg.eigh(moment(centred[is_dmso(table)]))
    white = centred @ vectors @ np.diag(1 / np.sqrt(variances + RIDGE))
    if correction == "whitening":
        return white
    to_all = power(moment(white[is_dmso(table)]), 0.5)
    aligned = np.empty_like(white)
    for batch in set(table["batch"]):
        rows = (table["batch"] == batch).to_numpy()
        aligned[rows] = white[rows] @ power(moment(white[rows & is_dmso(table)]), -0.5) @ to_all
    return aligned


def naive_treatments(table, values):
    """(compound, concentration, MoA, batches, profile) of each treatment, in order."""
    members = {}
    for row, profile in zip(table.itertuples(), values, strict=True):
        if row.compound != "DMSO":
            members.setdefault((row.compound, row.concentration), []).append((row, profile))
    median = statistics.median
    return [
        (
            *key,
            wells[0][0].moa,
            frozenset(row.batch for row, _ in wells),
            np.array([median(column) for column in zip(*(p for _, p in wells), strict=True)]),
        )
        for key, wells in sorted(members.items())
    ]


def naive_score(treatments, other_batch):
    """Right answers and queries."""
    if other_batch:
        batches = {}
        for _, _, moa, names, _ in treatments:
            batches.setdefault(moa, set()).update(names)
        treatments = [t for t in treatments if len(batches[t[2]]) > 1]
    right = queries = 0
    for compound, _, moa, names, profile in treatments:
        best, answer, candidates = -np.inf, None, 0
        for other in treatments:
            if other[0] == compound or (other_batch and other[3] == names):
                continue
            candidates += 1
            length = np.linalg.norm(profile) * np.linalg.norm(other[4])
            cosine = round(profile @ other[4] / length, 12) if length > 0 else -np.inf
            if cosine > best:
                best, answer = cosine, other[2]
        queries += candidates > 0
        right += answer == moa
    return right, queries


@pytest.mark.parametrize("seed", range(4))
def test_every_correction_and_score_equals_plain_loops(seed):
    table = screen(seed)
    found = evaluate(table, Protocol(regularization=RIDGE))
    for name, scores in found.scores.items():
        treatments = naive_treatments(table, naive_profiles(table, name))
        assert (scores.nsc.correct, scores.nsc.total) == naive_score(treatments, False), name
        assert (scores.nscb.correct, scores.nscb.total) == naive_score(treatments, True), name
    assert set(found.scores["none"].nscb.excluded["moa"]) == {"of one batch"}


@pytest.mark.parametrize("correction", ["harmony", "combat"])
def test_corrections_of_libraries_are_scored_with_a_note(correction):
    pytest.importorskip("harmonypy" if correction == "harmony" else "scanpy")
    found = evaluate(screen(2), Protocol(corrections=("none", correction)))
    assert found.scores[correction].nsc.total == found.scores["none"].nsc.total
    assert any(note.startswith(f"{correction} is fitted on all wells") for note in found.notes)
    one_batch = evaluate(
        screen(2).assign(batch="Week1"), Protocol(corrections=("none", correction))
    )
    assert "all wells lie in 'Week1'" in one_batch.scores[correction].nsc.undefined
