"""Records embeddings of torchvision's ResNets and a CNN of PyTorch, for tests without PyTorch.

  python tests/bench/record_torch_embeddings.py      # with torch and torchvision, 10 seconds

Weights and images are those of tests/support/drawn_weights.py, images 4 of 96×96 pixels. Of 2,048
features every fourth is kept. tests/support/recorded/torch_embeddings.npz has an array [4, D]
float32 for each network and mode, such as `resnet50/evaluation` and `cnn_batch/training`, and one
named `versions`.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from support import torch_models  # noqa: E402
from support.drawn_weights import images  # noqa: E402

RECORDED = TESTS / "support" / "recorded" / "torch_embeddings.npz"
WIDTHS = (16, 32, 64, 64)
KEPT = 512


def networks():
    """Yields (name, model)."""
    for name in torch_models.DEPTHS:
        model = getattr(torchvision.models, name)(weights=None)
        model.fc = torch.nn.Identity()
        yield name, model
    for name, norm in (("cnn", "none"), ("cnn_batch", "batch")):
        yield name, torch_models.Published(*torch_models.cnn(WIDTHS, norm), None)


def main():
    found = {
        "versions": np.array(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    }
    for name, model in networks():
        torch_models.with_drawn_weights(model)
        for mode in ("evaluation", "training"):
            h = torch_models.embed(model, images(), train=mode == "training")
            found[f"{name}/{mode}"] = h[:, :: max(1, h.shape[1] // KEPT)]
            print(f"{name}/{mode}: {found[f'{name}/{mode}'].shape}, deviation {h.std():.3f}")
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **found)
    print(f"{RECORDED}: {RECORDED.stat().st_size:,} bytes; {found['versions']}")


if __name__ == "__main__":
    main()
