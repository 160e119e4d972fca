"""Claim 7, CPU against GPU as the mission tells it: a CNN on CIFAR-10, a Transformer, BERT on V100s."""

import contextlib
import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import base, fits
from experiments.claims.base import PREDICTED, Part, Settings, Shown

QUESTION = 'How long do a CNN on CIFAR-10, a translation Transformer and BERT take on this CPU and on GPUs?'
CLAIM = 'What takes a CPU days takes a GPU hours, for less energy.'
CARDS = ('gtx1080', 'v100-16', 'h100')
TARGET = 0.98  # accuracy of the digits, which can be trained here to the end
IMAGES = 'image:uint8[32,32,3],label:int32[]'


@dataclasses.dataclass(frozen=True)
class Work:
    """One piece of work of the account.

    Attributes:
        config: whose step and length it is.
        title: what it is.
        batch: of the step that is measured here.
        dtype: in which a card computes it at its best.
        gpus: how many cards share it.
        fields: fields of the config that differ.
    """

    config: str
    title: str
    batch: int
    dtype: str
    gpus: int = 1
    fields: tuple[tuple[str, str], ...] = ()


WORKS = {
    'cifar_cnn': Work('cifar_cnn', 'CNN on CIFAR-10 (60,000 images of 32×32, 50,000 of them to train)', 32, 'float32'),
    'wmt_base': Work('wmt_base', 'Transformer base, English to German', 1, 'float16',
                     fields=(('model.dtype', 'float32'), ('model.layers', '6'))),
    'bert_large': Work('bert_large', 'BERT-large, as published', 1, 'float16', gpus=8,
                       fields=(('data.source.train', 'FILES'),)),
}  # fmt: skip


def parts(settings: Settings) -> list[Part]:
    found: list[Part] = [('digits', lambda: digits_to_target(settings, 'digits'))]
    for name, work in reversed(WORKS.items()):  # the CNN, which is compiled and run, last
        run = name == 'cifar_cnn' or not settings.quick
        found.append((name, lambda w=work, r=run: cost(w, settings, measure=r)))
    for name, work in WORKS.items() if not settings.quick else [('cifar_cnn', WORKS['cifar_cnn'])]:
        for card in CARDS:
            gpus = card if work.gpus == 1 else f'{card}x{work.gpus}'
            found.append((f'plan {name} {card}', lambda w=work, g=gpus: planned(w, g)))
    return found


def digits_to_target(settings: Settings, name: str) -> dict[str, Any]:
    """digits_cnn until an evaluation reaches TARGET: seconds and joules, start and compiling included."""
    from jaxdl.core import flags
    from jaxdl.core.config import Checkpoint
    from jaxdl.record.metrics_file import read_metrics
    from jaxdl.run import loop as trainer

    config = flags.load_config('digits_cnn')
    config.steps, config.log_every, config.eval_every = 400, 25, 25
    config.checkpoint = Checkpoint()
    folder = Path(settings.folder) / 'runs' / f'cpu_gpu-{name}'
    shutil.rmtree(folder, ignore_errors=True)
    import time

    begun = time.time()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(config, str(folder))
    rows = read_metrics(folder / 'metrics.jsonl')
    reached = [row for row in rows if row.get('eval/test/accuracy', 0) >= TARGET]
    if not reached:
        best = max(row.get('eval/test/accuracy', 0) for row in rows)
        raise RuntimeError(
            f'{config.steps} steps reached {base.share(best, 1)}, not {base.share(TARGET)}'
        )
    row = reached[0]
    joules = {
        k.split('/')[1][:3]: v for k, v in row.items() if k.startswith('energy/') and 'joules' in k
    }
    return {
        'seconds': row['time'] - begun,
        'step': row['step'],
        'accuracy': row['eval/test/accuracy'],
        'joules': joules,
    }


def cost(work: Work, settings: Settings, *, measure: bool) -> dict[str, Any]:
    """FLOPs of the whole run of a config; its examples a second on this machine where measured."""
    import jax

    from experiments.gpu.steps import random_rows
    from jaxdl.account import flops
    from jaxdl.commands.plan import parse_rows
    from jaxdl.core import flags
    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.program import Program

    config = flags.apply_overrides(flags.load_config(work.config), list(work.fields))
    examples = config.steps * config.batch_size
    config = dataclasses.replace(config, batch_size=work.batch, accumulate=1)
    shapes = config.data.example() if work.config != 'cifar_cnn' else None
    if shapes is None:
        shapes = {k: np.zeros(v.shape, v.dtype) for k, v in parse_rows(IMAGES).items()}
    rows = random_rows({'id': np.int32(0), **shapes}, work.batch)
    mesh = mesh_lib.make_mesh(config.mesh, jax.local_devices()[:1])
    program = Program(config, mesh, {k: v[0] for k, v in rows.items()})
    placed = mesh_lib.put(rows, mesh_lib.batch_sharding(mesh))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed
    )
    counted = flops.count(
        program.steps.train_metrics, program.abstract, abstract, {}, program.hyper
    )
    found = {
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)),
        'flops_per_example': counted.model / work.batch,
        'examples': examples,
        'steps': config.steps,
        'batch': examples // config.steps,
    }
    if not measure:
        return found
    step, _ = program.compile_train(abstract, {})
    state = [
        program.init({k: np.resize(v, (2, *v.shape[1:])) for k, v in rows.items() if k != 'id'})
    ]
    hyper = program.place_hyper()

    def call():
        state[0], packed = step(state[0], placed, {}, hyper)
        jax.block_until_ready(packed)

    seconds = base.seconds_of(call, enough=1.0 if settings.quick else 10.0)
    return {
        **found,
        'device': jax.local_devices()[0].device_kind,
        'examples_per_s': work.batch / seconds,
    }


def planned(work: Work, gpus: str) -> dict[str, Any]:
    """Seconds of the whole run by the compiled program's roofline."""
    words = [
        f'--config={work.config}',
        *(f'--config.{path}={value}' for path, value in work.fields),
    ]
    if work.config == 'cifar_cnn':
        words.append(f'--rows={IMAGES}')
    from jaxdl.core import flags

    steps = flags.load_config(work.config).steps
    plan = base.plan(words, gpus)
    return {
        'seconds': steps * plan['time']['seconds'],
        'joules': steps * plan['joules_upper'],
        'fits': plan['memory']['fits'],
    }


def present(values: dict[str, Any]) -> Shown:
    from experiments.claims.draw import bars
    from jaxdl.compiled import cards

    shown, rows, chart = Shown('', PREDICTED), [], []
    said = ''
    for name, work in WORKS.items():
        found = values.get(name)
        if found is None:
            continue
        total = found['flops_per_example'] * found['examples']
        shown.notes.append(
            f'{work.title}: {found["steps"]:,} steps × {found["batch"]:,} examples × '
            f'{found["flops_per_example"] / 1e9:.4g} GFLOP (counted on the training step of '
            f'{base.number(found["parameters"])} parameters, forward and backward) = {base.amount(total, "FLOP", 4)}.'
        )
        cpu = None
        if 'examples_per_s' in found:
            cpu = found['examples'] / found['examples_per_s']
            rows.append(
                [name, 'this machine', f'{found["examples_per_s"]:.4g} examples/s, a batch of {work.batch}',
                 base.duration(cpu), 'unavailable', 'predicted from a measured rate']
            )  # fmt: skip
            if name == 'cifar_cnn':
                chart.append(('this machine', cpu, base.duration(cpu)))
        else:
            rows.append([name, 'this machine', 'not run in quick mode', '', '', 'unavailable'])
        for card_name in CARDS:
            card = cards.find(card_name)
            peak = card.peak(work.dtype)
            seconds, joules = fits.at_peak(total / work.gpus, peak, card.watts)
            title = card.title if work.gpus == 1 else f'{work.gpus} × {card.title}'
            used = work.dtype if peak > card.peak_flops['float32'] else 'float32'
            if used == 'float32' and 'tensorfloat32' in card.peak_flops:
                used = 'TF32'
            sum_ = (
                f'{base.amount(total, "FLOP", 4)} ÷ ({work.gpus} × {peak / 1e12:g} TFLOP/s {used})'
                if work.gpus > 1
                else f'{base.amount(total, "FLOP", 4)} ÷ {peak / 1e12:g} TFLOP/s {used}'
            )
            joules *= work.gpus
            rows.append(
                [name, title, sum_, f'≥ {base.duration(seconds)}',
                 f'{base.amount(joules, "J")} ({card.watts:g} W{f" × {work.gpus}" if work.gpus > 1 else ""})', 'predicted, a bound']
            )  # fmt: skip
            if name == 'cifar_cnn':
                chart.append((card.title, seconds, f'≥ {base.duration(seconds)}'))
            plan = values.get(f'plan {name} {card_name}')
            if plan:
                rows.append(
                    [name, title, 'plan of the compiled program', f'≥ {base.duration(plan["seconds"])}',
                     base.amount(plan['joules'], 'J'), 'predicted, a bound']
                )  # fmt: skip
            if name == 'cifar_cnn' and card_name == 'gtx1080' and cpu:
                said = (
                    f'The CIFAR-10 recipe would take {base.duration(cpu)} on this machine at its measured rate '
                    f'and at least {base.duration(seconds)} on a GTX 1080 at its published '
                    f'{peak / 1e12:.2f} TFLOP/s'
                )
            if name == 'bert_large' and card_name == 'v100-16':
                said += f'; BERT-large takes at least {base.duration(seconds)} on 8 V100s'
    shown.answer = f'{said or "Nothing was counted"}.'
    if chart:
        shown.figures.append(('The CIFAR-10 recipe', bars(chart, label='seconds', log=True)))
    if 'digits' in values:
        one = values['digits']
        joules = (
            ', '.join(f'{v:.0f} J ({k})' for k, v in one['joules'].items()) or 'energy unavailable'
        )
        shown.notes.insert(
            0,
            f'Measured to a target: digits_cnn reached {base.share(one["accuracy"], 1)} (target {base.share(TARGET)}) after '
            f'{one["step"]} steps and {one["seconds"]:.1f} s, compiling included; {joules}.',
        )
    shown.tables.append(
        (
            '',
            ['work', 'on', 'how', 'time', 'energy: that time at rated power, cards alone', 'label'],
            rows,
        )
    )
    shown.notes.append(
        'A time of a card is a lower bound: published peak, no memory traffic, no launches; two steps '
        'on an H200 took 1.6 and 1.7 times the bound of their plan (docs/gpu.md). Joules are that least '
        'time at rated power, an orientation and no bound. CIFAR-10 is not on this machine: its rate was measured on random images.'
    )
    return shown
