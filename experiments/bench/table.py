"""The goals of docs/performance.md beside what was measured: python -m experiments.bench.table [DIR].

Reads the JSON that `python -m experiments.bench` wrote and prints a Markdown table.
"""

import json
import os
import sys
from collections.abc import Sequence

from experiments.bench.__main__ import OUT
from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError, run

# (what, file, dtype, goal) of the steps.
STEPS = (
    ('VGG-like CNN, batch 128', 'cnn', 'float32', 1.0),
    ('ResNet-18 of width 32, batch 128', 'resnet18', 'float32', 1.0),
    ('ResNet-20, batch 128', 'resnet20', 'float32', 1.0),
    ('Transformer, vocabulary 256, batch 16', 'transformer', 'float32', 1.1),
    ('Transformer, vocabulary 50,304, batch 4', 'transformer_50k', 'float32', 1.2),
    ('Transformer, vocabulary 256, batch 16', 'transformer', 'bfloat16', 1.0),
    ('Transformer, vocabulary 50,304, batch 4', 'transformer_50k', 'bfloat16', 1.0),
    ('LSTM of 512, 128 steps, batch 32', 'lstm', 'float32', 1.0),
    ('LSTM of 512, 128 steps, batch 32', 'lstm', 'bfloat16', None),
    ('ViT-Ti, patch 4, batch 64', 'vit_ti', 'float32', None),
    ('BERT-base, 128 tokens, batch 4', 'bert_base', 'float32', None),
)
LOADER = (('device', 8.0), ('host', None), ('stream', 2.0))


def rows(folder: str) -> list[list[str]]:
    """The lines of the table: what, goal, measured, spread, remark."""
    found = []
    for what, name, dtype, goal in STEPS:
        report = _read(folder, name)
        if report is None:
            continue
        suffix = '' if dtype == 'float32' else f' {dtype}'
        by_name = {row['variant']: row for row in report['rows']}
        ours = by_name.get(f'jaxdl{suffix}')
        if ours is None or 'speed' not in ours:
            continue
        best = next(row for row in report['rows'] if row['dtype'] == dtype and row.get('best'))
        peak = max(report['peak_gflops'])
        shares = [100 * report['gflop'] / row['ms'] * 1e3 / peak for row in (ours, best)]
        remark = (
            f'{ours["ms"]:.0f} ms against {best["ms"]:.0f} ({best["variant"]}); {shares[0]:.0f} % and '
            f'{shares[1]:.0f} % of the float32 product; memory {ours["peak_mib"] / best["peak_mib"]:.2f}×'
        )
        found.append([f'{what}, {dtype}', _goal(goal, '≥ {}×'), *_ratio(ours), remark])
    report = _read(folder, 'loader')
    if report is not None:
        by_name = {row['variant']: row for row in report['rows']}
        for placement, goal in LOADER:
            ours = by_name[f'jaxdl {placement}']
            remark = f'{1e3 * report["batch"] / ours["ms"]:,.0f} images/s'
            found.append([f'loader, {placement}', _goal(goal, '≥ {}×'), *_ratio(ours), remark])
    report = _read(folder, 'loop')
    if report is not None:
        remark = f'{report["bare_ms"]:.2f} ms a step; data wait {100 * report["data_wait"]:.2f} %'
        low, high = report['range']
        found.append(
            ['the loop, time over a bare one', '≤ 1.01×', f'{report["ratio"]:.3f}×', f'{low:.3f}–{high:.3f}', remark]
        )  # fmt: skip
    for name, goal in (('digits', 2.5), ('resnet20', 3.0)):
        report = (_read(folder, 'startup') or {}).get(name)
        if report is not None:
            warm = report['all_s'][1:]
            found.append(
                [f'start-up, {name}', f'≤ {goal} s', f'{report["warm_s"]:.2f} s', f'{min(warm):.2f}–{max(warm):.2f}', f'empty cache {report["cold_s"]:.1f} s']
            )  # fmt: skip
    return found


def _goal(goal: float | None, form: str) -> str:
    return '' if goal is None else form.format(goal)


def _ratio(row: dict) -> tuple[str, str]:
    low, high = row['speed_range']
    return f'{row["speed"]:.2f}×', f'{low:.2f}–{high:.2f}'


def _read(folder: str, name: str) -> dict | None:
    try:
        with open(os.path.join(folder, f'{name}.json')) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    line = CommandLine(__doc__ or '', words='[DIR]', example=OUT)
    folder = (line.parse(argv).words or [OUT])[0]
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: is no folder')
    print('| what | goal | measured | range | |\n|---|---|---|---|---|')
    for row in rows(folder):
        print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
    sys.exit(run(main))
