"""The networks of `bench` and `cifar`, in PyTorch: the same layers, sizes and ways of drawing the first weights."""
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

NAMES = "mlp, mlp-wide, cnn, resnet20 (6 n + 2 layers), resnet18, wrn-16-4, wrn-28-10 (6 n + 4 layers)"


class ConvNorm(nn.Module):
    """A convolution without bias, and batch normalization."""

    def __init__(self, inputs, outputs, kernel=3, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x))


class NormConv(nn.Module):
    """Batch normalization, ReLU and a convolution without bias. Also returns what the convolution has seen."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)

    def forward(self, x):
        active = F.relu(self.norm(x))
        return self.conv(active), active


class BasicBlock(nn.Module):
    """He et al. 2016: normalization after each convolution, a 1x1 convolution as shortcut where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, stride=stride)
        self.second = ConvNorm(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x):
        residual = self.second(F.relu(self.first(x)))
        return F.relu(residual + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Zagoruyko & Komodakis 2016: normalization before each convolution, which the shortcut's convolution shares."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = NormConv(inputs, outputs, stride)
        self.second = NormConv(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x):
        residual, active = self.first(x)
        residual, _ = self.second(residual)
        return residual + (x if self.shortcut is None else self.shortcut(active))


class GlobalPool(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def groups(block, inputs, widths, depth):
    """Groups of `depth` blocks, the first block of each group but the first with stride 2."""
    blocks = []
    for number, width in enumerate(widths):
        for position in range(depth):
            stride = 2 if number > 0 and position == 0 else 1
            blocks.append(block(inputs, width, stride))
            inputs = width
    return blocks


def perceptron(pixels, hidden, classes):
    layers, inputs = [nn.Flatten()], pixels
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def convolutional(channels, width, classes):
    layers = []
    for factor, stride in [(1, 1), (2, 2), (2, 1), (4, 2), (4, 1)]:
        layers += [ConvNorm(channels, factor * width, stride=stride), nn.ReLU()]
        channels = factor * width
    return nn.Sequential(*layers, GlobalPool(), nn.Linear(channels, classes))


def residual(channels, widths, depth, classes):
    blocks = groups(BasicBlock, widths[0], widths, depth)
    return nn.Sequential(ConvNorm(channels, widths[0]), nn.ReLU(), *blocks, GlobalPool(), nn.Linear(widths[-1], classes))


def wide_residual(channels, depth, factor, classes):
    widths = [int(base * factor) for base in (16, 32, 64)]
    blocks = groups(PreActivationBlock, 16, widths, (depth - 4) // 6)
    stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(widths[2]), nn.ReLU(), GlobalPool(), nn.Linear(widths[2], classes))


def draw(model):
    """Weights uniform in ±1/√(inputs of a unit), as PyTorch draws them; biases 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.uniform_(-bound, bound)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def network(name, shape, classes=10):
    """A network for images of `shape` (channels, height, width), by the name that `bench` has for it."""
    channels, pixels = shape[0], math.prod(shape)
    wide = re.fullmatch(r"wrn-(\d+)-([\d.]+)", name)
    deep = re.fullmatch(r"resnet(\d+)", name)
    if name == "mlp":
        model = perceptron(pixels, [128], classes)
    elif name == "mlp-wide":
        model = perceptron(pixels, [1024, 1024], classes)
    elif name == "cnn":
        model = convolutional(channels, 16, classes)
    elif name == "resnet18":
        model = residual(channels, [64, 128, 256, 512], 2, classes)
    elif deep and int(deep[1]) % 6 == 2:
        model = residual(channels, [16, 32, 64], (int(deep[1]) - 2) // 6, classes)
    elif wide and int(wide[1]) % 6 == 4:
        model = wide_residual(channels, int(wide[1]), float(wide[2]), classes)
    else:
        raise ValueError(f"unknown network {name}: expected {NAMES}")
    return draw(model)


def default_shape(name):
    """Of the images that `bench` makes for a network."""
    return (1, 28, 28) if name.startswith("mlp") else (3, 32, 32)
