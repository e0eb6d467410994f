"""Defines the encoders in PyTorch, with the names of torchvision and the published code."""

import torch
from support.drawn_weights import drawn
from torch import nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(inside, width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample(inside, 4 * width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def downsample(inside, outside, stride):
    if stride == 1 and inside == outside:
        return None
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class ResNet(nn.Module):
    """The ResNet of torchvision without its classification layer."""

    def __init__(self, name, channels=3):
        super().__init__()
        block = Basic if name == "resnet18" else Bottleneck
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        inside = 64
        for stage, depth in enumerate(DEPTHS[name], 1):
            width, blocks = 64 * 2 ** (stage - 1), []
            for i in range(depth):
                blocks.append(block(inside, width, 2 if stage > 1 and i == 0 else 1))
                inside = block.expansion * width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.width = inside

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x.flatten(1)


def cnn(widths, norm, channels=3):
    """Makes the layers of the published CNN, with batch normalisation if `norm` is "batch"."""
    layers = []
    for inside, outside in zip((channels, *widths), widths, strict=False):
        layers.append(nn.Conv2d(inside, outside, 3, padding=1, bias=norm == "none"))
        layers += [nn.BatchNorm2d(outside)] if norm == "batch" else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return layers, widths[-1]


class Published(nn.Module):
    """An encoder's children as a sequence, and a head of two layers, as in the published code.

    Args:
      layers: layers of the encoder.
      features: width of its embedding.
      head: (hidden, width), or None for no head.
    """

    def __init__(self, layers, features, head):
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.l1 = self.l2 = None
        if head:
            self.l1, self.l2 = nn.Linear(features, head[0]), nn.Linear(*head)

    def forward(self, x):
        x = self.features(x)
        h = x.mean(dim=(2, 3))
        return h if self.l1 is None else (h, self.l2(torch.relu(self.l1(h))))


def embed(model, images, *, train):
    """Computes outputs [B, D] of a model for images [B, H, W, C] float32."""
    with torch.no_grad():
        found = model.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return [part.numpy() for part in found] if isinstance(found, tuple) else found.numpy()


def with_drawn_weights(model):
    """Loads weights of `drawn` into a model and returns the model."""
    model.load_state_dict({n: torch.from_numpy(a) for n, a in drawn(shapes(model)).items()})
    return model


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
