"""The networks of `cellclr_jax.models`, the loss and the step once more in plain PyTorch.

They are what the benchmarks measure CellCLR against: laid out like torchvision's, with the head,
the loss and the optimiser of the same config.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

RESNETS = {"resnet18": ("basic", (2, 2, 2, 2)), "resnet50": ("bottleneck", (3, 4, 6, 3))}
STAGE_WIDTHS = (64, 128, 256, 512)
CNN_WIDTHS = (16, 32, 64, 64)


class CNN(nn.Sequential):
    """Convolution, normalisation, ReLU and 2×2 pooling for each width, then the spatial mean."""

    def __init__(self, widths: Sequence[int], *, channels: int, norm: bool) -> None:
        layers: list[nn.Module] = []
        for inside, outside in zip((channels, *widths), widths, strict=False):
            layers.append(nn.Conv2d(inside, outside, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(outside)] if norm else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.width = widths[-1]


class Block(nn.Module):
    """A residual block: two 3×3 convolutions (`basic`), or 1×1, 3×3, 1×1 (`bottleneck`)."""

    def __init__(self, kind: str, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = width if kind == "basic" else 4 * width
        shapes = [(inside, width, 3, stride), (width, width, 3, 1)]
        if kind == "bottleneck":
            shapes = [(inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)]
        layers: list[nn.Module] = []
        for shape in shapes:
            layers += [*_normalised(*shape), nn.ReLU(inplace=True)]
        self.path = nn.Sequential(*layers[:-1])
        same = stride == 1 and inside == outside
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*_normalised(inside, outside, 1, stride))
        )
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outside, H / stride, W / stride]."""
        return torch.relu(self.path(x) + self.shortcut(x))


class ResNet(nn.Sequential):
    """A residual network without its classification layer."""

    def __init__(self, kind: str, depths: Sequence[int], *, channels: int) -> None:
        stem = [*_normalised(channels, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        blocks: list[nn.Module] = []
        inside = 64
        for stage, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
            for i in range(depth):
                block = Block(kind, inside, width, 2 if stage and not i else 1)
                blocks.append(block)
                inside = block.outside
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.width = inside


def _normalised(inside: int, outside: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outside)]


def make_model(name: str, *, channels: int, norm: bool, projection: int) -> nn.Module:
    """An encoder with its head.

    Args:
      name: cnn, resnet18 or resnet50.
      channels: of the images.
      norm: batch normalisation in the CNN and in the head (ResNets have it anyway).
      projection: width of the head's result.
    """
    if name in RESNETS:
        kind, depths = RESNETS[name]
        encoder: CNN | ResNet = ResNet(kind, depths, channels=channels)
    else:
        encoder = CNN(CNN_WIDTHS, channels=channels, norm=norm)
    inner = [nn.BatchNorm1d(encoder.width)] if norm else []
    first = nn.Linear(encoder.width, encoder.width, bias=not norm)
    return nn.Sequential(
        encoder, first, *inner, nn.ReLU(inplace=True), nn.Linear(encoder.width, projection)
    )


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent of [2B, D] projections, the two views of a cell side by side."""
    z = nn.functional.normalize(z.float())
    similarities = z @ z.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device) ^ 1
    return nn.functional.cross_entropy(similarities, partner)


class Peer:
    """A training step in PyTorch: forward, backward, SGD with momentum.

    Attributes:
      model: encoder and head.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float,
        dtype: torch.dtype,
        channels_last: bool,
        compiled: bool,
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(device).to(memory_format=layout)
        self.layout, self.temperature = layout, temperature
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-6, fused=True
        )
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
        self.loss: Callable[[Tensor], Tensor] = self._loss
        if compiled:
            self.loss = torch.compile(self._loss)

    def put(self, views: Tensor) -> Tensor:
        """Views [2B, C, H, W] on the device, in the memory layout of the model."""
        return views.to(self.device).to(memory_format=self.layout)

    def step(self, views: Tensor) -> Tensor:
        """One update from views that `put` returned; the loss, not fetched."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(views)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, views: Tensor) -> Tensor:
        with self.autocast:
            z = self.model(views)
        return nt_xent(z, self.temperature)
