"""Target models of the built-in tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(num_inputs: int, hidden: Sequence[int], num_outputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A multilayer perceptron with an activation between its layers, initialised as ``torch.nn.Linear`` does."""
    widths = [num_inputs, *hidden, num_outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def cnn(
    image_shape: tuple[int, int, int],
    channels: Sequence[int],
    num_outputs: int,
    activation: type[nn.Module] = nn.ReLU,
    as_products: bool = False,
) -> nn.Module:
    """A convolutional network: per entry of ``channels`` a 3×3 convolution, activation and 2×2 maximum pooling; then one linear layer.

    Args:
        image_shape: Channels, height and width; each pooling halves height and width, rounded down.
        channels: Of each convolution's output.
        num_outputs: Of the linear layer.
        activation: Module between the layers.
        as_products: Whether convolutions and pooling are computed as :class:`ProductConvolution` and :class:`ProductPooling` do.
    """
    num_channels, height, width = image_shape
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([num_channels, *channels]):
        convolution = ProductConvolution(fan_in, fan_out) if as_products else nn.Conv2d(fan_in, fan_out, 3, padding=1)
        layers += [convolution, activation(), ProductPooling() if as_products else nn.MaxPool2d(2)]
        num_channels, height, width = fan_out, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(num_channels * height * width, num_outputs))


class ProductConvolution(nn.Module):
    """``nn.Conv2d(fan_in, fan_out, 3, padding=1)`` as the product of a matrix with all patches; the same parameters and initial values.

    Batched over many models it is one batched product, where a convolution would become a grouped one, which PyTorch computes slowly for
    small models on a CPU. For a single model, or many channels, the convolution is faster.
    """

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """``images (B, C, H, W)`` become ``(B, C', H, W)``, which lie in memory as ``(C', H, W, B)``: so whole rows are copied at a time."""
        count, num_channels, height, width = images.shape
        padded = F.pad(images.permute(1, 2, 3, 0), (0, 0, 1, 1, 1, 1))
        shifted = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
        patches = torch.stack(shifted, dim=1).reshape(9 * num_channels, height * width * count)
        products = self.weight.flatten(1) @ patches + self.bias.unsqueeze(1)
        return products.view(-1, height, width, count).permute(3, 0, 1, 2)


class ProductPooling(nn.Module):
    """``nn.MaxPool2d(2)`` of what :class:`ProductConvolution` gives: examples, last in memory, are its channels, so that it is fast."""

    def forward(self, images: Tensor) -> Tensor:
        """``images (B, C, H, W)`` become ``(B, C, H // 2, W // 2)``."""
        return F.max_pool2d(images.transpose(0, 1), 2).transpose(0, 1)


def image_mlp(image_shape: tuple[int, int, int], hidden: Sequence[int], num_outputs: int) -> nn.Module:
    """:func:`mlp` on all values of an image of this shape: channels, height and width."""
    return nn.Sequential(nn.Flatten(), mlp(math.prod(image_shape), hidden, num_outputs))


def resnet(image_shape: tuple[int, int, int], channels: Sequence[int], num_outputs: int, num_groups: int = 8) -> nn.Module:
    """A residual network with group normalisation, which needs no running averages: a convolution, residual blocks, one linear layer.

    Args:
        image_shape: Channels, height and width.
        channels: Of each block's output, multiples of ``num_groups``; each block but the first halves height and width, rounded up.
        num_outputs: Of the linear layer, which sees each channel's mean over the image.
        num_groups: Of each normalisation.
    """
    layers: list[nn.Module] = [nn.Conv2d(image_shape[0], channels[0], 3, padding=1, bias=False)]
    for index, (fan_in, fan_out) in enumerate(pairwise([channels[0], *channels])):
        layers.append(_ResidualBlock(fan_in, fan_out, 1 if index == 0 else 2, num_groups))
    end = [nn.GroupNorm(num_groups, channels[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_outputs)]
    return nn.Sequential(*layers, *end)


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each after normalisation and ReLU, added to the input (He et al. 2016, identity mappings)."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.GroupNorm(num_groups, fan_in), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False),
            nn.GroupNorm(num_groups, fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
        )
        is_same = fan_in == fan_out and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """``images (B, C, H, W)`` become ``(B, C', H', W')``."""
        activated = self.activation(images)
        # Where shapes change, the shortcut starts from the normalised input, as in the paper.
        start = images if isinstance(self.shortcut, nn.Identity) else activated
        output: Tensor = self.shortcut(start) + self.residual(activated)
        return output


class CharacterTransformer(nn.Module):
    """A causal transformer over characters, with layer normalisation before each part, initialised as the layers of ``torch.nn`` are.

    Token indices ``(B, T)`` become logits ``(B, V, T)`` of the next token, classes in dimension 1 as ``F.cross_entropy`` takes them.

    Args:
        vocabulary_size: V.
        context: Largest T.
        width: Of the hidden states; a multiple of ``num_heads``.
        num_heads: Attention heads of each layer.
        num_layers: Layers of attention and a multilayer perceptron.
    """

    def __init__(self, vocabulary_size: int, context: int, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.Sequential(*(_TransformerLayer(width, num_heads) for _ in range(num_layers)))
        self.normalisation = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, V, T)`` of token indices ``(B, T)``."""
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[-1]]
        logits: Tensor = self.logits(self.normalisation(self.layers(hidden)))
        return logits.transpose(-1, -2)


class _TransformerLayer(nn.Module):
    """Causal self-attention and a perceptron, each added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads != 0:
            raise ValueError(f"width must be a multiple of num_heads, but {width} and {num_heads} were given.")
        self.num_heads = num_heads
        self.attention_normalisation, self.perceptron_normalisation = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states ``(B, T, W)`` from hidden states ``(B, T, W)``."""
        hidden = hidden + self.projection(self._attend(self.attention_normalisation(hidden)))
        output: Tensor = hidden + self.perceptron(self.perceptron_normalisation(hidden))
        return output

    def _attend(self, hidden: Tensor) -> Tensor:
        # Plain products and a softmax: torch.func.vmap has no batching rules for the fused attention's gradient.
        length = hidden.shape[-2]
        heads = self.queries_keys_values(hidden).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, W / H)
        queries, keys, values = heads.movedim(-3, 0).transpose(-2, -3)  # each (B, H, T, W / H)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        is_later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        attended: Tensor = scores.masked_fill(is_later, -math.inf).softmax(-1) @ values
        return attended.transpose(-2, -3).flatten(-2)
