"""What a row's numbers are called where they are drawn: a section for each kind, `train/loss`."""

VALIDATION, ONLINE = "validation_", "online_"
_SECTIONS = {
    "train": ("loss", "contrastive_accuracy"),
    "representation": ("alignment", "uniformity", "embedding_spread", "collapse_warning"),
    "optimizer": ("lr", "gradient_norm", "parameter_norm", "update_norm"),
    "speed": ("cells_per_second", "input_wait"),
}
_SECTION_OF = {name: section for section, names in _SECTIONS.items() for name in names}
_MEANINGS = {
    "loss": "NT-Xent, mean over minibatches",
    "contrastive_accuracy": "share of views whose nearest other view is of the same cell",
    "alignment": "mean squared distance of a cell's two projections, 0 to 4; lower is closer",
    "uniformity": "log of the mean Gaussian of distances between cells; 0: all in one point",
    "embedding_spread": "mean standard deviation of an embedding's features over cells",
    "input_wait": "share of the time in which the loop waited for the next minibatch",
    "cells_per_second": "without compilation, validation and saving",
    "update_norm": "length of the step that the optimiser took",
    "nsc": "MoA of the nearest treatment of another compound, of a subset of the cells",
    "nscb": "the same, of another compound and another batch",
}


def tag(name: str) -> str:
    """'validation_loss' → 'validation/loss'; what has no section goes to 'train'."""
    for prefix in (VALIDATION, ONLINE):
        if name.startswith(prefix):
            return f"{prefix.rstrip('_')}/{name.removeprefix(prefix)}"
    return f"{_SECTION_OF.get(name, 'train')}/{name}"


def meaning(name: str) -> str:
    """One line on what a number says, or ''."""
    return _MEANINGS.get(name.removeprefix(VALIDATION).removeprefix(ONLINE), "")


OVERVIEW = {
    "loss": ("train/loss", "validation/loss"),
    "contrastive accuracy": ("train/contrastive_accuracy", "validation/contrastive_accuracy"),
    "online scores": ("online/.*",),
    "representation": ("representation/alignment", "representation/uniformity"),
}
"""Charts that lie over each other what belongs together: regular expressions of tags by title."""
