"""Networks of the acceptance test's training, in plain torch, without weights or data from anywhere; and their arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class Basic(nn.Module):
    """Two 3x3 convolutions and a way around them (He et al. 2015, https://arxiv.org/abs/1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(self, entering: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(entering, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(entering, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, width, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions (figure 5 right), the stride in the 3x3 one, as torchvision has it."""

    expansion = 4

    def __init__(self, entering: int, width: int, stride: int) -> None:
        super().__init__()
        leaving = width * self.expansion
        self.conv1 = _conv(entering, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, leaving, 1)
        self.bn3 = nn.BatchNorm2d(leaving)
        self.downsample = _shortcut(entering, leaving, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, 4 width, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """A ResNet whose layers have torchvision's names and sizes."""

    def __init__(
        self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, channels = _stage(block, 64, 64, depths[0], 1)
        self.layer2, channels = _stage(block, channels, 128, depths[1], 2)
        self.layer3, channels = _stage(block, channels, 256, depths[2], 2)
        self.layer4, channels = _stage(block, channels, 512, depths[3], 2)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


class Layer(nn.Module):
    """Attention to earlier tokens, then a perceptron, each behind a norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, dim) to (N, T, dim)."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, d))
        out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Decoder(nn.Module):
    """A Transformer that predicts the next token (decoder only, norms first)."""

    def __init__(self, dim: int, layers: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.dim, self.length = dim, length
        self.token, self.position = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (N, T) to logits (N, T, vocabulary)."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def resnet18() -> ResNet:
    """11,689,512 parameters."""
    return ResNet(Basic, (2, 2, 2, 2))


def resnet50() -> ResNet:
    """25,557,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def transformer(device: torch.device) -> Decoder:
    """Twelve layers of 1,024 on a GPU; tiny on a CPU."""
    if device.type == "cuda":
        return Decoder(dim=1024, layers=12, heads=16, vocabulary=32768, length=1024)
    return Decoder(dim=64, layers=2, heads=4, vocabulary=256, length=64)


def parameters(net: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters())


def train_flop(net: nn.Module, image: int) -> float:
    """Operations to train on one sample: forward once, backward twice that.

    ResNet: 2 per multiply-add of convolutions and the last layer, on images of `image` x `image`. Decoder: 6·N a token,
    N without embeddings but with the output head, and 6·layers·dim·T for attention to earlier tokens (Kaplan et al. 2020,
    https://arxiv.org/abs/2001.08361, table 1; PaLM, https://arxiv.org/abs/2204.02311, appendix B, halved since causal).
    """
    if isinstance(net, Decoder):
        n = parameters(net) - net.token.weight.numel() - net.position.weight.numel()
        return float((6 * n + 6 * len(net.layers) * net.dim * net.length) * net.length)
    return 6.0 * multiply_adds(net, image)


def multiply_adds(net: nn.Module, image: int) -> int:
    """Of convolutions and linear layers, forward, for one image; nothing is computed (meta tensors)."""
    count = 0

    def add(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal count
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        count += out.numel() * weight[0].numel()

    made: Callable[[], nn.Module] = resnet50 if isinstance(net.layer1[0], Bottleneck) else resnet18  # type: ignore[index]
    with torch.device("meta"):
        copy = made()
        for module in copy.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(add)
        copy.eval()(torch.empty(1, 3, image, image))
    return count


def _stage(
    block: type[Basic] | type[Bottleneck], entering: int, width: int, depth: int, stride: int
) -> tuple[nn.Sequential, int]:
    """Blocks of one width, the first with the stride; and how many channels leave it."""
    leaving = width * block.expansion
    rest = (block(leaving, width, 1) for _ in range(depth - 1))
    return nn.Sequential(block(entering, width, stride), *rest), leaving


def _conv(entering: int, leaving: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(entering, leaving, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(entering: int, leaving: int, stride: int) -> nn.Sequential:
    """Nothing, or a 1x1 convolution where sizes change."""
    if stride == 1 and entering == leaving:
        return nn.Sequential()
    return nn.Sequential(_conv(entering, leaving, 1, stride), nn.BatchNorm2d(leaving))
