"""The recipe of configs/fashion_cnn.py as a plain PyTorch script: `… torch_fashion DIR [SEED]`.

Prints one line of JSON a test: {"time": seconds since 1970, "accuracy": …}. The set is a tensor in
memory, and a batch is cropped and flipped at once, the fastest plain way.
"""

import json
import math
import pathlib
import sys
import time

from jaxdl.run import runtime

if __name__ == '__main__':
    runtime.restart_with_tuned_heap()
runtime.prepare_process()  # the allocator, as for jaxdl

import copy  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from jaxdl.data.images.idx import read_idx  # noqa: E402

if torch.cuda.is_available():
    torch.set_default_device('cuda')
    torch.set_float32_matmul_precision('high')
WIDTHS, BATCH, EPOCHS, RATE, DECAY, WARMUP, EMA = (32, 96, 128), 256, 6, 0.02, 0.02, 0.05, 0.995


class Net(nn.Module):
    """airbench with the widths of the config."""

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.whiten = nn.Conv2d(1, 8, 2)
        with torch.no_grad():
            patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 4)
            variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
            filters = (directions * (variances + 5e-4).rsqrt()).T.flip(0).reshape(-1, 1, 2, 2)
            self.whiten.weight.copy_(torch.cat([filters, -filters]))
            self.whiten.bias.zero_()
        self.whiten.weight.requires_grad = False
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        last = 8
        for width in WIDTHS:
            for inputs in (last, width):
                conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                nn.init.dirac_(conv.weight[:inputs])
                norm = nn.BatchNorm2d(width, momentum=0.4)
                norm.weight.requires_grad = False
                self.convs.append(conv)
                self.norms.append(norm)
            last = width
        self.head = nn.Linear(last, 10, bias=False)

    def forward(self, x):
        x = F.gelu(self.whiten(x))
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x = F.gelu(norm(F.max_pool2d(x, 2) if index % 2 == 0 else x))
        return self.head(x.amax((2, 3))) / 9


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps (https://kellerjordan.github.io/posts/muon/)."""
    x = update / (update.norm() + 1e-7)
    wide = x.shape[0] > x.shape[1]
    x = x.T if wide else x
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x.T if wide else x


def augment(images: torch.Tensor) -> torch.Tensor:
    """Flips and shifts by up to a pixel, each image its own way."""
    count = len(images)
    columns = torch.arange(28)
    padded = F.pad(images, (1, 1, 1, 1), value=-0.286 / 0.353)
    top, left = torch.randint(0, 3, (2, count, 1))
    flip = torch.rand(count, 1) < 0.5
    across = left + torch.where(flip, columns.flip(0), columns)
    rows = torch.arange(count)[:, None, None]
    found = padded[rows, 0, (top + columns)[:, :, None], across[:, None, :]]
    return found[:, None].contiguous(memory_format=torch.channels_last)


def main() -> None:
    """Trains and tests."""
    folder, seed = pathlib.Path(sys.argv[1]), int((sys.argv[2:] or ['0'])[0])
    torch.manual_seed(seed)
    sets = {}
    for part in ('train', 't10k'):
        images, labels = (
            torch.tensor(read_idx(next(folder.glob(f'{part}-{kind}*')))[0])
            for kind in ('images', 'labels')
        )
        sets[part] = (images[:, None].float() / 255 - 0.286) / 0.353, labels.long()
    images, labels = sets['train']
    model = Net(images[:512]).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    momenta = [torch.zeros_like(p) for p in matrices]
    adam = torch.optim.Adam(others, lr=1.0, betas=(0.9, 0.95), fused=True)
    per_epoch = 60_000 // BATCH
    steps = EPOCHS * per_epoch
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(images))])
        ids, order = order[:BATCH], order[BATCH:]
        done = (step + 0.5) / steps
        rate = RATE * min(done / WARMUP, 1.0) * (1 - max(done - WARMUP, 0) / (1 - WARMUP))
        loss = F.cross_entropy(model(augment(images[ids])), labels[ids], label_smoothing=0.1)
        model.zero_grad(set_to_none=True)
        loss.backward()
        adam.param_groups[0]['lr'] = 0.15 * rate
        adam.step()
        with torch.no_grad():
            for p, momentum in zip(matrices, momenta, strict=True):
                momentum.lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(momentum, 0.95).flatten(1)).view_as(p)
                size = max(1.0, p.shape[0] / math.prod(p.shape[1:])) ** 0.5
                p.mul_(1 - rate * DECAY).add_(update, alpha=-rate * size)
            decay = min(EMA, (2 + step) / (4 + step))
            for mean, p in zip(
                average.state_dict().values(), model.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(p, 1 - decay)
        if (step + 1) % per_epoch == 0:
            print(json.dumps({'accuracy': test(average, *sets['t10k']), 'time': time.time()}))
            sys.stdout.flush()


@torch.no_grad()
def test(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The accuracy over images and their mirror images."""
    model.eval()
    right = 0
    for start in range(0, len(images), 1000):
        x = images[start : start + 1000].contiguous(memory_format=torch.channels_last)
        right += int(
            ((model(x) + model(x.flip(3))).argmax(1) == labels[start : start + 1000]).sum()
        )
    model.train()
    return right / len(images)


if __name__ == '__main__':
    main()
