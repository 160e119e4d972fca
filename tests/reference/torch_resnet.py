"""ResNet in plain PyTorch, with torchvision's structure, and its weights from a tree of arrays."""

import numpy as np
import torch
from torch import nn


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.first_conv, self.first_norm = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.second_conv, self.second_norm = conv(width, width, 3), nn.BatchNorm2d(width)
        self.projects = stride > 1 or inputs != width
        if self.projects:
            self.shortcut_conv = conv(inputs, width, 1, stride)
            self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, x):
        y = torch.relu(self.first_norm(self.first_conv(x)))
        y = self.second_norm(self.second_conv(y))
        return torch.relu(y + (self.shortcut_norm(self.shortcut_conv(x)) if self.projects else x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        out = 4 * width
        self.first_conv, self.first_norm = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.second_conv, self.second_norm = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.third_conv, self.third_norm = conv(width, out, 1), nn.BatchNorm2d(out)
        self.projects = stride > 1 or inputs != out
        if self.projects:
            self.shortcut_conv = conv(inputs, out, 1, stride)
            self.shortcut_norm = nn.BatchNorm2d(out)

    def forward(self, x):
        y = torch.relu(self.first_norm(self.first_conv(x)))
        y = torch.relu(self.second_norm(self.second_conv(y)))
        y = self.third_norm(self.third_conv(y))
        return torch.relu(y + (self.shortcut_norm(self.shortcut_conv(x)) if self.projects else x))


class TorchResNet(nn.Module):
    """Four stages of blocks with the ImageNet stem; images are [batch, channels, height, width]."""

    def __init__(self, block, blocks, width, num_classes):
        super().__init__()
        self.stem_conv, self.stem_norm = conv(3, width, 7, 2), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.names, inputs = [], width
        for stage, count in enumerate(blocks):
            for index in range(count):
                name = f'stage{stage}_block{index}'
                stride = 2 if stage and not index else 1
                self.add_module(name, block(inputs, width * 2**stage, stride))
                self.names.append(name)
                inputs = width * 2**stage * block.expansion
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.stem_norm(self.stem_conv(x))))
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.classifier(x.mean((2, 3)))


def load(module, params, batch_stats):
    """Copies trees of the same names, kernels in the order [height, width, in, out]."""
    tensors = {}

    def walk(prefix, tree):
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(f'{prefix}{name}.', value)
                continue
            value = np.asarray(value)
            if name == 'kernel':
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            torch_name = {
                'kernel': 'weight',
                'scale': 'weight',
                'mean': 'running_mean',
                'var': 'running_var',
            }.get(name, name)
            tensors[prefix + torch_name] = torch.tensor(np.ascontiguousarray(value))

    walk('', params)
    walk('', batch_stats)
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith('num_batches_tracked') for name in missing), missing
