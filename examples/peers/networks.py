"""The networks of `bench` and `cifar`, in PyTorch: the same layers, sizes and ways of drawing the first weights."""
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

NAMES = ("mlp, mlp-wide, cnn, resnet20 (6 n + 2 layers), resnet18, wrn-16-4, wrn-28-10 (6 n + 4 layers), vit-tiny, gpt, "
         "efficientnet-lite0")


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


class InvertedBlock(nn.Module):
    """Tan & Le 2019 without squeeze and excitation: expansion, a convolution of each channel by itself, projection."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inner = expansion * inputs
        layers = [] if expansion == 1 else [ConvNorm(inputs, inner, 1), nn.ReLU6()]
        depthwise = nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False)
        layers += [depthwise, nn.BatchNorm2d(inner), nn.ReLU6(), ConvNorm(inner, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.has_skip else self.layers(x)


class TransformerBlock(nn.Module):
    """Normalization before each branch: attention, and an MLP of four times the width."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=self.causal)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 4 pixels and a class token; the width, heads and blocks of DeiT-Ti."""

    def __init__(self, channels, side, classes, patch=4, width=192, heads=3, depth=12):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class LanguageModel(nn.Module):
    """A GPT whose last layer is the table of its tokens."""

    def __init__(self, vocabulary, length, width=256, heads=8, depth=6):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(x))).flatten(0, 1)


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


def efficientnet_lite0(channels, classes):
    """Kernel, stride, expansion, width and depth of each group of blocks."""
    blocks, inputs = [], 32
    for kernel, stride, expansion, width, depth in [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
                                                    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)]:
        for position in range(depth):
            blocks.append(InvertedBlock(inputs, width, kernel, stride if position == 0 else 1, expansion))
            inputs = width
    return nn.Sequential(ConvNorm(channels, 32, stride=2), nn.ReLU6(), *blocks, ConvNorm(inputs, 1280, 1), nn.ReLU6(),
                         GlobalPool(), nn.Linear(1280, classes))


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
    """A network for images of `shape` (channels, height, width), by the name that `bench` has for it. Of a text, the shape is
    its length, and the classes are its tokens."""
    if name == "gpt":
        return draw(LanguageModel(classes, shape[-1]))
    channels, pixels = shape[0], math.prod(shape)
    wide = re.fullmatch(r"wrn-(\d+)-([\d.]+)", name)
    deep = re.fullmatch(r"resnet(\d+)", name)
    if name == "mlp":
        model = perceptron(pixels, [128], classes)
    elif name == "mlp-wide":
        model = perceptron(pixels, [1024, 1024], classes)
    elif name == "cnn":
        model = convolutional(channels, 16, classes)
    elif name == "vit-tiny":
        model = VisionTransformer(channels, shape[-1], classes)
    elif name == "efficientnet-lite0":
        model = efficientnet_lite0(channels, classes)
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
    """Of the images, or the text, that `bench` makes for a network."""
    special = {"efficientnet-lite0": (3, 128, 128), "gpt": (256,)}
    if name in special:
        return special[name]
    return (1, 28, 28) if name.startswith("mlp") else (3, 32, 32)
