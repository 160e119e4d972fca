"""Imports point downward only, folder by folder, and the core names nothing concrete."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / 'jaxdl').rglob('*.py'))

# Which parts of jaxdl a part may import besides itself. Every folder and every module that lies
# flat in jaxdl/ is named: a new one has no place until it is entered here.
BASE = {'api', 'metrics', 'errors', 'files'}
ALLOWED = {
    'errors': set(),
    'metrics': set(),
    'files': {'errors'},
    'api': {'metrics', 'errors'},
    'models': {'api', 'errors'},
    'environments': {'api', 'errors'},
    'data': BASE - {'metrics'},
    'tasks': BASE | {'models', 'environments'},  # decoding is a function of any model
    'core': BASE | {'models'},  # of models only what OF_MODELS names
    'compiled': {'errors'},
    'account': BASE | {'core', 'compiled'},
    'record': BASE | {'core'},
    'run': BASE | {'core', 'record', 'account', 'compiled', 'models'},
    'predict': BASE | {'core', 'run', 'record', 'data', 'models'},
    'plan': BASE | {'core', 'run', 'account', 'compiled', 'models'},
    'sweeps': BASE | {'core', 'run', 'record', 'account'},
    'report': BASE | {'record', 'sweeps'},
    'interchange': BASE | {'core', 'run', 'record', 'models'},
    'commands': None,
    '__main__': None,
}
# What the loop and the core may import of the models: how a model's work is laid out on devices, and
# which formulations of the operations it took.
OF_MODELS = {f'jaxdl.models.{name}' for name in ('applied', 'layers', 'layout', 'float8', 'ops')}
OUTSIDE = {
    'models': {'jax', 'jaxlib', 'flax', 'numpy', 'qwix'},
    'environments': {'jax', 'flax', 'numpy', 'gymnax', 'gymnasium', 'PIL'},
    'data': {
        'numpy', 'grain', 'tensorflow_datasets', 'etils', 'PIL', 'requests', 'absl', 'sklearn',
        'tokenizers', 'array_record', 'importlib_resources', 'scipy', 'pyarrow',
    },
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """'package.module.name' of every import in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: a relative import'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT / 'jaxdl').parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    name = part(path)
    if name == '__init__':  # importing jaxdl imports nothing; its functions may
        at_once = [node for node in ast.parse(path.read_text()).body if 'Import' in str(node)]
        assert [node.module for node in at_once if isinstance(node, ast.ImportFrom)] == ['typing']
        assert len(at_once) == 1
        return
    allowed = ALLOWED[name]
    for full in imports(path):
        pieces = full.split('.')
        if pieces[0] == 'jaxdl':
            assert allowed is None or pieces[1] in allowed | {name}, f'{path.name} imports {full}'
        elif pieces[0] not in sys.stdlib_module_names and name in OUTSIDE:
            assert pieces[0] in OUTSIDE[name], f'{path.name} imports {full}'


@pytest.mark.parametrize('name', ['core', 'run'])
def test_the_core_names_nothing_concrete(name):
    for path in (ROOT / 'jaxdl' / name).rglob('*.py'):
        for full in imports(path):
            pieces = full.split('.')
            if pieces[:1] == ['jaxdl'] and pieces[1] in ('models', 'tasks', 'data'):
                assert '.'.join(pieces[:3]) in OF_MODELS, f'{path.name} imports {full}'


def test_no_imports_in_a_circle():
    """Modules, imports inside functions included."""
    names = {
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
        for path in FILES
    }
    edges = {
        name: {
            target
            for full in imports(path)
            for target in [full if full in names else full.rpartition('.')[0]]
            if target in names and target != name and '.' in target
        }
        for name, path in names.items()
    }
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]):
        assert name not in above, ' → '.join([*above[above.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                walk(target, (*above, name))
            done.add(name)

    for name in sorted(edges):
        walk(name, ())


def test_no_module_uses_the_private_names_of_another():
    for path in FILES:
        for full in imports(path):
            if full.startswith('jaxdl.'):
                last = full.rpartition('.')[2]
                assert not last.startswith('_') or last.startswith('__'), f'{path.name}: {full}'
