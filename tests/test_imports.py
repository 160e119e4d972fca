"""Imports point downward only, and the core names nothing concrete."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / 'jaxdl').rglob('*.py'))

# Which parts of jaxdl a part may import (besides itself); parts not listed are free.
ALLOWED = {
    'models': {'models'},
    'data': {'data', 'errors', 'cli', 'runtime'},
    'tasks': {'tasks', 'metrics', 'errors', 'models'},  # models: decoding, a function of any model
    'metrics': set(),
    'errors': set(),
    'optim': set(),
    'config': {'errors'},
    'step': {'config', 'metrics', 'models', 'optim'},  # optim: the name of a path
    'parallel': {'config', 'errors', 'optim'},
    'digest': set(),
    'alike': set(),
    'checkpoint': {'config', 'digest', 'errors', 'optim'},
    'feed': {'parallel', 'data', 'errors'},
    'program': {'alike', 'config', 'errors', 'models', 'optim', 'parallel', 'step'},
    'evaluation': {'config', 'errors', 'feed', 'parallel', 'program', 'step'},
    'trainer': None,
}
OUTSIDE = {
    'models': {'jax', 'jaxlib', 'flax', 'numpy', 'qwix'},
    'data': {
        'numpy', 'grain', 'tensorflow_datasets', 'etils', 'PIL', 'requests', 'absl', 'sklearn',
        'tokenizers', 'array_record', 'importlib_resources', 'scipy',
    },
}  # fmt: skip
STDLIB = __import__('sys').stdlib_module_names


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


# A command: it stands where users look for it and meets the whole of a run.
DOORS = {ROOT / 'jaxdl' / 'data' / 'benchmark.py'}


def part(path: Path) -> str:
    if path in DOORS:
        return 'trainer'
    return path.relative_to(ROOT / 'jaxdl').parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    name = part(path)
    for full in imports(path):
        pieces = full.split('.')
        if pieces[0] == 'jaxdl':
            allowed = ALLOWED.get(name)
            assert allowed is None or pieces[1] in allowed | {name}, f'{path.name} imports {full}'
        elif pieces[0] not in STDLIB and name in OUTSIDE:
            assert pieces[0] in OUTSIDE[name], f'{path.name} imports {full}'


@pytest.mark.parametrize('name', ['trainer', 'step', 'program', 'parallel', 'feed', 'evaluation'])
def test_the_core_names_nothing_concrete(name):
    allowed = {'models.layers', 'models.layout', 'models.float8', 'data.pipeline'}
    for full in imports(ROOT / 'jaxdl' / f'{name}.py'):
        pieces = full.split('.')
        if pieces[:1] == ['jaxdl'] and pieces[1] in ('models', 'tasks', 'data'):
            assert '.'.join(pieces[1:3]) in allowed, f'{name} imports {full}'
