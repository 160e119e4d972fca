"""What is installed here, which devices, caches and sensors there are, and what is missing.

Every line that needs something done begins with '!' and ends with the command that does it.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from jaxdl.core.flags import CommandLine
from jaxdl.run import runtime

# What an extra is for, and the module that shows that it is there.
EXTRAS = {
    'gpu': ('jax_cuda12_plugin', 'NVIDIA GPUs (the CUDA 13 build does as well)'),
    'fp8': ('qwix', '--config.float8'),
    'rl': ('gymnax', 'environments of reinforcement learning'),
    'track': ('wandb', 'jaxdl track --to=wandb'),
    'dev': ('pytest', 'make test'),
}
FOLDERS = {
    'plan': ('jax_cuda12_plugin', 'jaxdl plan: the CUDA compiler without a GPU'),
    'onnx': ('jax2onnx', 'jaxdl export --format=onnx'),
}


def main(argv: Sequence[str]) -> None:
    settings = runtime.prepare_process()
    CommandLine(__doc__ or '', example='').parse(argv)
    for title, lines in (
        ('installed', installed()),
        ('devices', _devices()),
        ('caches', _caches(settings)),
        ('sensors', _sensors()),
        ('extras', _extras()),
    ):
        found = list(lines)
        for index, line in enumerate(found):
            print(f'{title if not index else "":<11}{line}')


def installed() -> Iterator[str]:
    from jaxdl.record.run_info import git_revision

    git = git_revision()
    revision = f', revision {git["revision"][:10]}{" and changes" * git["dirty"]}' if git else ''
    place = pathlib.Path(__file__).resolve().parent.parent
    yield f'jaxdl {_version("jaxdl") or "(not installed)"}{revision}, in {place}'
    yield f'Python {sys.version.split()[0]}, {sys.executable}'
    try:
        wanted = metadata.requires('jaxdl') or []
    except metadata.PackageNotFoundError:
        listed = place.parent / 'requirements.txt'
        wanted = listed.read_text().splitlines() if listed.is_file() else []
    pinned = [re.match(r'([\w.-]+)==([^\s;]+)$', line.strip()) for line in wanted]
    others = []
    for match in filter(None, pinned):
        name, version = match.groups()
        there = _version(name)
        if there is None:
            yield f'! {name} is missing: python -m pip install {name}=={version}'
        elif there != version:
            others.append(f'{name} {there} (tested: {version})')
    if others:
        yield f'! other versions than the tested ones: {", ".join(others)}: pip install -e .'
    elif wanted:
        yield f'all {len(list(filter(None, pinned)))} required packages in the tested versions, jax {_version("jax")}'


def _devices() -> Iterator[str]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        yield f'! {str(error).splitlines()[0]}'
        return
    for device in devices[:8]:
        stats = device.memory_stats() if device.platform != 'cpu' else None
        memory = f', {stats["bytes_limit"] / 2**30:.0f} GiB for jax' if stats else ''
        yield f'{device.platform} {device.id}: {device.device_kind}{memory}'
    if len(devices) > 8:
        yield f'and {len(devices) - 8} more'
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    yield f'host: {cores} cores, {memory:.0f} GiB of memory'
    if runtime.has_nvidia() and devices[0].platform == 'cpu':
        yield "! there is an NVIDIA driver, but jax uses the CPU: pip install -e '.[gpu]'"


def _caches(settings: dict) -> Iterator[str]:
    from jaxdl import files
    from jaxdl.data import store

    cache = files.cache_folder()
    if cache is None:
        yield '! there is no home folder to keep data in: set JAXDL_CACHE to a folder'
        return
    known = {
        'compiled programs': settings.get('compile_cache'),
        'data sets': store.data_dir(),
        'tokenised text': cache / 'text',
    }
    for name, place in known.items():
        size = _size(place) if place else 0
        yield f'{name}: {place or "not cached"}{f", {size / 1e6:,.0f} MB" if size else ""}'
    there = cache
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        yield f'! {there} cannot be written: set JAXDL_CACHE to a folder that can'
    yield f'free on that disk: {shutil.disk_usage(there).free / 1e9:,.0f} GB'


def _sensors() -> Iterator[str]:
    from jaxdl.account.energy import Meter

    with Meter() as meter:
        for name, reading in meter.read().items():
            state = 'measured' if reading.joules is not None else 'not measured'
            yield f'energy of the {name.upper()}: {state} ({reading.source})'


def _extras() -> Iterator[str]:
    for name, (module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        if name == 'gpu':
            there = there or importlib.util.find_spec('jax_cuda13_plugin') is not None
        yield f'{name}: {"there" if there else f"not installed; {purpose}: pip install -e .[{name}]"}'
    for name, (module, purpose) in FOLDERS.items():
        folder = pathlib.Path(sys.prefix) / name
        there = importlib.util.find_spec(module) is not None or (folder / module).is_dir()
        fix = f'pip install --no-deps --target={folder} -r requirements-{name}.txt'
        yield f'{name}: {"there" if there else f"not installed; {purpose}: {fix}"}'


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _size(folder: str | os.PathLike) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total
