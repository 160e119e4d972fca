"""A VAE config of jaxdl and the same network in PyTorch, trained in turn for the same steps.

    python -m experiments.generative.vae_beside_torch digits_vae --steps=2000 --seeds=3

Both start from the same weights and have the same batch size, optimizer, schedule, averaged weights
and likelihood; data order and noise are each their own. Prints the test bound in bits per dimension
and the steps per second of training alone, without compiling and evaluating, for each seed.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxdl.core import flags
from jaxdl.record.metrics_file import read_metrics
from jaxdl.run import loop
from jaxdl.tasks import pictures


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        groups = next(n for n in range(min(16, outputs), 0, -1) if outputs % n == 0)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x):
        return functional.silu(self.norm(self.conv(x)))


class Vae(nn.Module):
    """jaxdl.models.vae.Vae with a vector of latents, with the parameters of one."""

    def __init__(self, model, params):
        super().__init__()
        self.model = model
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for kind, stages in (('down', self.down), ('up', self.up)):
            for name in sorted(n for n in params if n.startswith(kind)):
                first = name.endswith('_0')
                kernel = params[name]['conv']['kernel']
                inputs, outputs = kernel.shape[2:]
                stages[name] = Block(inputs, outputs, 2 if kind == 'down' and first else 1)
                copy(stages[name].conv, params[name]['conv'])
        self.to_latent = nn.Linear(*params['to_latent']['kernel'].shape)
        self.from_latent = nn.Linear(*params['from_latent']['kernel'].shape)
        inputs, outputs = params['last']['kernel'].shape[2:]
        self.last = nn.Conv2d(inputs, outputs, 3, padding=1)
        for name in ('to_latent', 'from_latent', 'last'):
            copy(getattr(self, name), params[name])

    def encode(self, x):
        for block in self.down.values():
            x = block(x)
        mean, log_std = self.to_latent(x.permute(0, 2, 3, 1).flatten(1)).chunk(2, 1)
        return mean, log_std.clip(-8, 4)

    def decode(self, z):
        height, width, _ = self.model.shape
        factor = 2 ** len(self.model.channels)
        x = self.from_latent(z).view(len(z), height // factor, width // factor, -1)
        x = x.permute(0, 3, 1, 2)
        for name, block in self.up.items():
            x = block(functional.interpolate(x, scale_factor=2) if name.endswith('_0') else x)
        x = self.last(x).permute(0, 2, 3, 1)
        return x.reshape(*x.shape[:-1], self.model.shape[-1], -1)


def copy(layer, params):
    kernel = torch.tensor(np.asarray(params['kernel']))
    kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
    with torch.no_grad():
        layer.weight.copy_(kernel)
        layer.bias.copy_(torch.tensor(np.asarray(params['bias'])))


def bound(net, x, levels):
    """The bound [batch] in bits per dimension; x [batch, channels, height, width] in [-1, 1]."""
    mean, log_std = net.encode(x)
    z = mean + log_std.exp() * torch.randn_like(mean)
    logits, means, scales = net.decode(z).chunk(3, -1)
    half, factor = 1 / (levels - 1), torch.exp(-scales.clip(min=-7))
    pixel = x.permute(0, 2, 3, 1)[..., None]
    pixel = torch.round((pixel + 1) / (2 * half)) * 2 * half - 1
    above, below = (pixel + half - means) * factor, (pixel - half - means) * factor
    first, last = pixel < -1 + half, pixel > 1 - half
    mass = torch.where(last, 0.0, functional.logsigmoid(above))
    mass = mass + torch.where(first, 0.0, functional.logsigmoid(-below))
    mass = mass + torch.where(first | last, 0.0, torch.log(-torch.expm1(-2 * half * factor)))
    nats = torch.logsumexp(functional.log_softmax(logits, -1) + mass, -1).flatten(1).sum(1)
    kl = ((mean**2 + torch.exp(2 * log_std) - 1) / 2 - log_std).sum(1)
    return (kl - nats) / (math.log(2) * x[0].numel())


def train_torch(config, params, seed):
    """(test bound, steps per second)."""
    torch.manual_seed(seed)
    rows = {
        'train': config.data.train_source(),
        'test': next(iter(config.data.eval_sources().values())),
    }
    images = {
        name: torch.tensor(source.fetch(np.arange(len(source)))['image']).permute(0, 3, 1, 2)
        for name, source in rows.items()
    }
    images = {name: value.float() / 127.5 - 1 for name, value in images.items()}
    net = Vae(config.model, params)
    named = dict(net.named_parameters())
    plain = [p for n, p in named.items() if n.endswith('bias') or '.norm.' in n]
    decayed = [p for p in named.values() if all(p is not q for q in plain)]
    rate = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {'params': decayed, 'weight_decay': rate.weight_decay},
            {'params': plain, 'weight_decay': 0.0},
        ],
        lr=rate.learning_rate,
    )
    average = {name: value.detach().clone() for name, value in named.items()}
    order, spent = [], 0.0
    for step in range(config.steps):
        if step == 20:
            spent = time.perf_counter()  # not counted until then
        if len(order) < config.batch_size:
            order = torch.randperm(len(images['train'])).tolist()
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        for group in optimizer.param_groups:
            group['lr'] = float(rate.rate(jnp.float32(step), config.steps))
        optimizer.zero_grad()
        bound(net, images['train'][chosen], config.task.levels).mean().backward()
        optimizer.step()
        decay = 1 - 1 / max(config.ema * (step + 1), 1)
        with torch.no_grad():
            for name, value in named.items():
                average[name].lerp_(value, 1 - decay)
    speed = (config.steps - 20) / (time.perf_counter() - spent)
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(average[name])
        found = [bound(net, part, config.task.levels) for part in images['test'].split(500)]
    return float(torch.cat(found).mean()), speed


def train_jaxdl(config):
    """(test bound, steps per second)."""
    with tempfile.TemporaryDirectory() as folder:
        loop.train(config, folder)
        rows = read_metrics(Path(folder) / 'metrics.jsonl')
    speeds = [row['perf/examples_per_s'] for row in rows if 'perf/examples_per_s' in row]
    bounds = [row['eval/test/bound'] for row in rows if 'eval/test/bound' in row]
    return bounds[-1], float(np.median(speeds)) / config.batch_size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--steps', type=int, default=0)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--first', type=int, default=0)
    given = parser.parse_args()
    for seed in range(given.first, given.first + given.seeds):
        words = [('seed', str(seed)), ('task.shown', '0'), ('task.importance', '0')]
        words += [('steps', str(given.steps))] if given.steps else []
        config = flags.apply_overrides(flags.load_config(given.config), words)
        steps = str(config.steps)
        config = flags.apply_overrides(
            config, [('eval_every', steps), ('checkpoint.every', steps), ('log_every', '50')]
        )
        image = pictures.image_shape(config.data)
        key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))[0]
        start = config.model.init(key, jnp.zeros((1, *image)), train=False)['params']
        start = jax.device_get(start)
        ours, our_speed = train_jaxdl(config)
        theirs, their_speed = train_torch(config, start, seed)
        row = {'config': given.config, 'seed': seed, 'steps': config.steps}
        row |= {'jaxdl_bound': ours, 'torch_bound': theirs}
        row |= {'jaxdl_steps_per_s': our_speed, 'torch_steps_per_s': their_speed}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == '__main__':
    main()
