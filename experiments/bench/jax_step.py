"""jaxdl's side of the step benchmark: the very program that train.py runs, on a resident batch."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.account import flops
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.compiled_step import CompiledStep
from jaxdl.core.config import Config
from jaxdl.core.optim import AdamW, Constant, Sgd
from jaxdl.core.program import Program
from jaxdl.models.bert import Bert
from jaxdl.models.cnn import Cnn
from jaxdl.models.resnet import ResNet
from jaxdl.models.rnn import RnnLM
from jaxdl.models.transformer import TransformerLM
from jaxdl.run import runtime
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.masked_lm import MaskedLM


def model_of(case, dtype: str):
    """The Flax module of a case."""
    sizes = case.sizes
    if case.name == 'cnn':
        return Cnn(**sizes, dtype=dtype)
    if case.name.startswith('resnet'):
        return ResNet(**sizes, zero_init=False, dtype=dtype)
    if case.name == 'vit_ti':
        from jaxdl.models.vit import ViT

        return ViT(**sizes, num_classes=10, dtype=dtype)
    vocab, width = sizes['vocab'], sizes['width']
    if case.name == 'lstm':
        return RnnLM(vocab=vocab, width=width, layers=1, dtype=dtype)
    if case.kind == 'masked':
        shape = {name: sizes[name] for name in ('width', 'layers', 'heads')}
        return Bert(vocab=vocab, dropout=0.0, dtype=dtype, **shape)
    return TransformerLM(
        vocab=vocab,
        max_length=sizes['time'],
        width=width,
        layers=sizes['layers'],
        heads=sizes['heads'],
        head_chunks=CHUNKS if vocab > 10_000 else 0,
        init_std=0.02,
        dtype=dtype,
    )


CHUNKS = 1  # what the operation chooses by itself for logits of this size


def rows_of(case, batch: int) -> dict[str, np.ndarray]:
    """A batch of random data."""
    rng = np.random.default_rng(0)
    ids = np.arange(batch, dtype=np.int32)
    if case.kind == 'images':
        images = rng.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8)
        return {'id': ids, 'image': images, 'label': rng.integers(0, 10, batch).astype(np.int32)}
    shape = (batch, case.sizes['time'])
    tokens = rng.integers(0, case.sizes['vocab'], (2, *shape)).astype(np.int32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return {
        'id': ids,
        'tokens': tokens[0],
        'targets': tokens[1],
        'segments': np.ones(shape, np.int32),
        'positions': np.ascontiguousarray(places),
        'target_mask': np.ones(shape, bool),
        'maskable': np.ones(shape, bool),
        'row': ids,
    }


GPU = jax.default_backend() == 'gpu'


def build(case, batch: int, words: list[str], group: int):
    """Returns (a function that trains `group` steps and waits for them, facts about it)."""
    dtype = 'bfloat16' if 'bfloat16' in words else 'float32'
    images = case.kind == 'images'
    task = Classification() if images else LanguageModel()
    if case.kind == 'masked':
        task = MaskedLM(vocab_size=case.sizes['vocab'], mask_token=103)
    config = Config(
        model=model_of(case, dtype),
        task=task,
        data=None,
        optimizer=Sgd(schedule=Constant()) if images else AdamW(schedule=Constant()),
        steps=1_000_000,
        batch_size=batch,
    )
    rows = rows_of(case, batch)
    mesh = mesh_lib.make_mesh(config.mesh)
    program = Program(config, mesh, {k: v[0] for k, v in rows.items() if k != 'id'})
    placed = mesh_lib.put(rows, mesh_lib.batch_sharding(mesh))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed
    )
    compiled, _ = program.compile_train(abstract, {})
    runtime.release_heap()  # as the loop does, and so on below
    settled = CompiledStep(compiled, program.traces, program.batch)
    state = [program.init({k: v[:2] for k, v in rows.items() if k != 'id'})]
    hyper = program.place_hyper()

    def step():
        for _ in range(group):
            state[0], packed = compiled(state[0], placed, {}, hyper)
        jax.block_until_ready((state[0], packed))
        settled.settle()

    plain = program.steps.train_metrics
    count = flops.count(plain, program.abstract, abstract, {}, program.hyper)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state[0].params))
    cost = compiled.cost_analysis() or {}
    moved = cost.get('bytes accessed', 0.0)  # a loop's body counts once
    return step, {'gflop': count.model / 1e9, 'parameters': parameters, 'bytes': moved}


def peak_mib() -> float | None:
    """The most of a GPU's memory that was in use; None on a CPU."""
    return jax.local_devices()[0].memory_stats()['peak_bytes_in_use'] / 2**20 if GPU else None


def peak() -> dict:
    """The rate of a matrix product (float32; bfloat16 on a GPU), in GFLOP/s: the best of a few."""
    size, dtype = (8192, jnp.bfloat16) if GPU else (2048, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best = np.inf
    for _ in range(8):
        begin = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return {'gflops': 2 * size**3 / best / 1e9}
