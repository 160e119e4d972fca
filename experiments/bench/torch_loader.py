"""PyTorch's side of the loader benchmark: a Dataset of tensors, transformed one by one, and a DataLoader."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Fashion-MNIST's sizes with crop, flip and normalisation, as usual in `__getitem__`."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self.images = torch.tensor(rng.integers(0, 256, (count, 1, 28, 28)).astype(np.uint8))
        self.labels = torch.tensor(rng.integers(0, 10, count))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = F.pad(self.images[index].float() / 255, (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = image[:, top : top + 28, left : left + 28]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - 0.286) / 0.353, self.labels[index]


def build(case, batch: int, words: list[str], group: int):
    """Returns (a function that fetches one batch, facts about it)."""
    workers = int(words[0].partition('=')[2])
    loader = DataLoader(
        Images(case.sizes['count']),
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    iterator = [iter(loader)]

    def step():
        try:
            return next(iterator[0])
        except StopIteration:
            iterator[0] = iter(loader)
            return next(iterator[0])

    return step, {'parameters': 0}
