"""PyTorch's side of the step benchmark: the same models and updates, written as its users do."""

import time

import numpy as np
import torch
import torch.nn.functional as F

from experiments.bench import torch_models

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
if GPU:  # TensorFloat-32, as XLA multiplies float32 by default
    torch.set_float32_matmul_precision('high')


def build(case, batch: int, words: list[str], group: int):
    """Returns (a function that trains `group` steps and waits for them, facts about it)."""
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)
    sizes, rng = case.sizes, np.random.default_rng(0)
    if case.kind == 'images':
        model = torch_models.vision(case)
        pixels = rng.integers(0, 256, (batch, 3, 32, 32)).astype(np.uint8)
        inputs, labels = torch.tensor(pixels), torch.tensor(rng.integers(0, 10, batch))
        make = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
        if 'channels_last' in words:
            model = model.to(memory_format=torch.channels_last)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
    else:
        kinds = {'rnn': torch_models.Lstm, 'tokens': torch_models.Gpt, 'masked': torch_models.Bert}
        model = kinds[case.kind](sizes)
        tokens = rng.integers(0, sizes['vocab'], (2, batch, sizes['time']))
        inputs, labels = torch.tensor(tokens[0]), torch.tensor(tokens[1])
        if case.kind == 'masked':
            places = torch.tensor(rng.permuted(_order(batch, sizes), axis=1)[:, : sizes['masked']])
            labels = labels[:, : sizes['masked']]
        make = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    optimizer, half = make, 'bfloat16' in words
    model.train()
    mode = 'reduce-overhead' if 'graphs' in words else 'default'
    call = torch.compile(model, mode=mode) if 'compile' in words else model

    def one():
        x = inputs
        if case.kind == 'images':
            x = (x.float() / 255 - 0.5) / 0.5
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            logits = call(x, places) if case.kind == 'masked' else call(x)
        loss = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def step():
        for _ in range(group):
            loss = one()
        return loss.item()

    return step, {'parameters': sum(p.numel() for p in model.parameters())}


def _order(batch: int, sizes: dict) -> np.ndarray:
    return np.tile(np.arange(sizes['time']), (batch, 1))


def peak_mib() -> float | None:
    """The most of a GPU's memory that was in use; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if GPU else None


def peak() -> dict:
    """The rate of a matrix product (float32; bfloat16 on a GPU), in GFLOP/s: the best of a few."""
    size, dtype = (8192, torch.bfloat16) if GPU else (2048, torch.float32)
    x = torch.randn(size, size, device=DEVICE).to(dtype)
    best = np.inf
    with torch.no_grad():
        for _ in range(8):
            begin = time.perf_counter()
            x @ x
            if GPU:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begin)
    return {'gflops': 2 * size**3 / best / 1e9}
