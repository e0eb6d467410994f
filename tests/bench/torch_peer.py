"""Implements the networks of `cellclr_jax.models`, the loss and the step in PyTorch.

Torchvision's ResNets and the published CNN, with the head, loss and optimiser of the same config.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

CNN_WIDTHS = (16, 32, 64, 64)


def _cnn(norm: bool) -> nn.Module:
    """Makes convolution, normalisation, ReLU and 2×2 pooling per width, then a spatial mean."""
    layers: list[nn.Module] = []
    for inside, outside in zip((3, *CNN_WIDTHS), CNN_WIDTHS, strict=False):
        layers.append(nn.Conv2d(inside, outside, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outside)] if norm else []
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make_model(name: str, *, norm: bool, projection: int = 128) -> nn.Module:
    """Makes an encoder with its head, for images of three channels.

    Args:
      name: cnn, or the name of a ResNet of torchvision.
      norm: batch normalisation in the CNN and in the head (ResNets always have it).
      projection: width of the projections.
    """
    if name == "cnn":
        encoder, width = _cnn(norm), CNN_WIDTHS[-1]
    else:
        encoder = getattr(torchvision.models, name)(weights=None)
        width, encoder.fc = encoder.fc.in_features, nn.Identity()
    inner = [nn.BatchNorm1d(width)] if norm else []
    first = nn.Linear(width, width, bias=not norm)
    return nn.Sequential(
        encoder, first, *inner, nn.ReLU(inplace=True), nn.Linear(width, projection)
    )


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Computes NT-Xent of projections [2B, D]; the two views of a cell are adjacent."""
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
        """Copies views [2B, C, H, W] to the device, in the memory layout of the model."""
        return views.to(self.device).to(memory_format=self.layout)

    def step(self, views: Tensor) -> Tensor:
        """Updates the model with views from `put`; returns the loss on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(views)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, views: Tensor) -> Tensor:
        with self.autocast:
            z = self.model(views)
        return nt_xent(z, self.temperature)
