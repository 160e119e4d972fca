"""The benchmark's models in PyTorch, layer for layer those of jaxdl."""

import torch
import torch.nn.functional as F
from torch import nn


def vision(case) -> nn.Module:
    """The module of an image case, on images [batch, 3, 32, 32]."""
    sizes = case.sizes
    if case.name == 'cnn':
        return cnn(**sizes)
    if case.name == 'vit_ti':
        return Vit(**sizes)
    return ResNet(**sizes)


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def cnn(channels, convs, dense) -> nn.Module:
    """3×3 convolutions with BatchNorm and ReLU, pooled after each stage, and a hidden layer."""
    layers, last = [], 3
    for features in channels:
        for _ in range(convs):
            layers += [_conv(last, features), nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
            last = features
        layers.append(nn.MaxPool2d(2))
    flat = last * (32 >> len(channels)) ** 2
    layers += [nn.Flatten(), nn.Linear(flat, dense), nn.ReLU(), nn.Linear(dense, 10)]
    return nn.Sequential(*layers)


class Basic(nn.Module):
    """Two 3×3 convolutions and a shortcut; `project` makes a 1×1 convolution of it."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool):
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs
        self.shortcut = None
        if project and (stride > 1 or inputs != outputs):
            self.shortcut = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(x + y)


class ResNet(nn.Module):
    """A residual network of basic blocks for 32×32 images."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        blocks = (2, 2, 2, 2) if depth == 18 else ((depth - 2) // 6,) * 3
        self.stem = nn.Sequential(_conv(3, width), nn.BatchNorm2d(width), nn.ReLU())
        layers, last = [], width
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(Basic(last, width << stage, stride, depth == 18))
                last = width << stage
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(last, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x):
        batch, time, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate='tanh'))


class Gpt(nn.Module):
    """A decoder language model with tied embeddings."""

    def __init__(self, sizes: dict):
        super().__init__()
        width = sizes['width']
        self.embed = nn.Embedding(sizes['vocab'], width)
        self.places = nn.Parameter(torch.randn(sizes['time'], width) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(width, sizes['heads'], True) for _ in range(sizes['layers']))
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens):
        x = self.embed(tokens) + self.places
        return F.linear(self.norm(self.blocks(x)), self.embed.weight)


class Vit(nn.Module):
    """A vision Transformer with a class token."""

    def __init__(self, width: int, layers: int, heads: int, patch: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (32 // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x)[:, 0]))


class Lstm(nn.Module):
    """A language model of one LSTM layer."""

    def __init__(self, sizes: dict):
        super().__init__()
        width = sizes['width']
        self.embed = nn.Embedding(sizes['vocab'], width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, sizes['vocab'])

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0])


class PostNorm(nn.Module):
    """A post-norm Transformer block, as BERT has it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = self.norm1(x + self.out(y.transpose(1, 2).reshape(batch, time, width)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """BERT with the masked head alone; predicts the tokens at `places` [batch, masked]."""

    def __init__(self, sizes: dict):
        super().__init__()
        width, vocab = sizes['width'], sizes['vocab']
        self.embed, self.kinds = nn.Embedding(vocab, width), nn.Embedding(2, width)
        self.places = nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(
            *(PostNorm(width, sizes['heads']) for _ in range(sizes['layers']))
        )
        self.transform, self.transform_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.pooler, self.pair = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, tokens, places):
        time = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) + self.places(time) + self.kinds(torch.zeros_like(tokens))
        x = self.blocks(self.norm(x))
        x = torch.take_along_dim(x, places[..., None], 1)
        x = self.transform_norm(F.gelu(self.transform(x)))
        return F.linear(x, self.embed.weight, self.bias)
