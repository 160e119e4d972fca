"""Prepares and checks a data set, for `jaxdl prepare`.

Without --from the original files are downloaded; with it they are taken from DIR, as downloaded by
hand. A set that is prepared already is checked. For other TFDS data sets --from is the folder with
the files that have to be downloaded by hand.
"""

import contextlib
import hashlib
import io
import logging
import pathlib
import re
import shutil
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdl.data import store
from jaxdl.data.images.catalogue import IMAGE_SETS
from jaxdl.data.images.originals import Check, ImageSet
from jaxdl.errors import UserError, nearest, shortened


def prepare(name: str, root: pathlib.Path, source: pathlib.Path | None = None) -> str:
    """Prepares the data set `name` under `root` and returns one line that says what is there.

    `source` is a folder with the original files; None: they are downloaded. Raises UserError where
    files are missing or damaged, the network cannot be reached or the name is unknown.
    """
    if source is not None and not source.is_dir():
        what = 'is a file; give the folder it is in' if source.is_file() else 'is no folder'
        raise UserError(f'--from={source}: {what}')
    if name in IMAGE_SETS:
        return prepare_image_set(IMAGE_SETS[name], root, source)
    letters = {re.sub(r'[\W_]', '', known): known for known in IMAGE_SETS}
    meant = letters.get(re.sub(r'[\W_]', '', name.lower()), '')
    if meant or not re.fullmatch(r'(\w+:)?\w+([/:].+)?', name):
        hint = f'; did you mean {meant!r}?' if meant else nearest(name, IMAGE_SETS)
        raise UserError(
            f'{shortened(name)}: no such data set{hint}; jaxdl itself prepares '
            f'{", ".join(IMAGE_SETS)}, and others under their names in TFDS'
        )
    return prepare_official(name, root, source)


def prepare_image_set(
    spec: ImageSet, root: pathlib.Path, source: pathlib.Path | None = None
) -> str:
    """`prepare` for a data set of the catalogue."""
    files = spec.find(source) if source is not None else None
    folder = store.image_set_folder(root, spec.name, spec.version)
    with store.preparing(root, spec.name) as staging:
        # Only now: another process may have prepared it while this one waited for the lock.
        if files is None:
            with contextlib.suppress(store.DamagedFile):
                if summary := _check_stored(spec, folder):
                    return summary
        from jaxdl.data.images import builders

        downloads = root / 'downloads'
        if files is None:
            _drop_damaged_downloads(spec, downloads / spec.name)
            if spec.downloads:
                _check_reachable(spec, root)
                megabytes = sum(d.size for d in spec.downloads) / 1e6
                print(f'{spec.name}: downloading {megabytes:.1f} MB', file=sys.stderr)
        builder = builders.builder_class(spec)(files=files, data_dir=staging)
        with _quiet(), _network_errors(spec.name, root), _without_rests(downloads / spec.name):
            builder.download_and_prepare(download_dir=downloads, file_format='array_record')
        prepared = pathlib.Path(builder.data_dir)
        _compare(builder)
        for split, rows in builder.arrays.items():
            lengths = builder.info.splits[split].shard_lengths
            store.write_split(prepared, split, rows, lengths)
        store.publish(prepared, folder)
    counts = {split: len(rows['image']) for split, rows in builder.arrays.items()}
    return _summary(spec, counts, folder, _checksum_report(builder.checks))


def prepare_official(name: str, root: pathlib.Path, source: pathlib.Path | None = None) -> str:
    """`prepare` for a data set of TFDS, by its official builder."""
    import tensorflow_datasets as tfds

    existing = official_builder(name, root)  # an unknown name ends here
    with store.preparing(root, name) as staging:
        if pathlib.Path(existing.data_dir).is_dir():
            sizes = {split: info.num_examples for split, info in existing.info.splits.items()}
            return f'{existing.info.full_name}: already prepared, {sizes}; in {existing.data_dir}'
        print(f'{name}: downloading and preparing with TFDS', file=sys.stderr)
        builder = official_builder(name, staging)
        config = tfds.download.DownloadConfig(
            manual_dir=source or root / 'downloads' / 'manual', try_download_gcs=False
        )
        rests = _without_rests(root / 'downloads' / builder.name)
        with _quiet(), _network_errors(name, root), rests, _builder_errors(name):
            builder.download_and_prepare(
                download_dir=root / 'downloads', download_config=config, file_format='array_record'
            )
        prepared = pathlib.Path(builder.data_dir)
        if not prepared.is_relative_to(staging):  # TFDS keeps it elsewhere: it was there before
            return f'{builder.info.full_name}: in {prepared}'
        folder = root / prepared.relative_to(staging)
        store.publish(prepared, folder)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    return f'{builder.info.full_name}: {sizes}; in {folder}'


def official_builder(name: str, root: pathlib.Path) -> Any:
    """Returns TFDS's own builder of `name` ('NAME/CONFIGURATION:VERSION', the latter two optional).

    Raises UserError with the nearest name if there is none.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    try:
        with _builder_errors(name):
            return tfds.builder(name, data_dir=root, try_gcs=False)
    except registered.DatasetNotFoundError:
        known = {*IMAGE_SETS, *tfds.list_builders(with_community_datasets=False)}
        hint = nearest(name, known) or f'; jaxdl itself prepares {", ".join(IMAGE_SETS)}'
        raise UserError(
            f'{shortened(name)}: no such data set, neither here nor in TFDS{hint}'
        ) from None
    except (ValueError, AssertionError) as error:  # no such configuration or version
        reason = ' '.join(str(error).split())
        raise UserError(f'{name}: TFDS knows the name but not the rest: {reason[:300]}') from None
    except UserError:
        raise
    except Exception as error:  # whatever TFDS meets in a damaged description of the set
        folder = root / name.split(':')[0]
        raise UserError(
            f'{folder}: its description cannot be read ({type(error).__name__}); remove it, then: '
            f'{store.prepare_command(name, root)}'
        ) from None


@contextlib.contextmanager
def _builder_errors(name: str) -> Iterator[None]:
    """Turns what an official builder lacks into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or str(error)).split('.')[0]
        package = {'cv2': 'opencv-python', 'PIL': 'pillow', 'bs4': 'beautifulsoup4'}.get(
            module, module
        )
        raise UserError(
            f'{name}: its TFDS builder needs {module} to prepare (reading needs no more): '
            f'pip install {package}, then python -m jaxdl prepare {name}'
        ) from None
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not any('manual' in line.lower() for line in lines):
            raise
        raise UserError(
            f'{name}: its files must be downloaded by hand: {" ".join(lines)[:600]}\n'
            f'then python -m jaxdl prepare {name} --from=DIR'
        ) from None


@contextlib.contextmanager
def _network_errors(name: str, root: pathlib.Path) -> Iterator[None]:
    """Turns a failed download into two lines that name the way around."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    try:
        yield
        return
    except requests.exceptions.RequestException as error:
        host = urllib.parse.urlsplit(error.request.url or '').hostname if error.request else None
        reason = f'{host} cannot be reached' if host else str(error)
    except download_manager.NonMatchingChecksumError as error:
        reason = f'{str(error).splitlines()[0]} It is not the published file'
    except util.DownloadError as error:
        reason = str(error)
    raise _download_failed(name, root, reason)


def _download_failed(name: str, root: pathlib.Path, reason: str) -> UserError:
    return UserError(
        f'{name}: not prepared yet, and the download failed: {reason}\n'
        f'with the original files in DIR: {store.prepare_command(name, root)} --from=DIR'
    )


def _check_reachable(spec: ImageSet, root: pathlib.Path) -> None:
    """Raises UserError within seconds where TFDS would try for minutes."""
    hosts = {urllib.parse.urlsplit(d.url).netloc: d.url for d in spec.downloads}
    proxies = urllib.request.getproxies()
    for host, url in hosts.items():
        parts = urllib.parse.urlsplit(url)
        proxy = proxies.get(parts.scheme) or proxies.get('all')
        if proxy and not urllib.request.proxy_bypass(parts.hostname or ''):
            continue  # the proxy resolves the name
        port = parts.port or (443 if parts.scheme == 'https' else 80)
        try:
            socket.create_connection((parts.hostname or '', port), timeout=10).close()
        except OSError as error:
            reason = error.strerror or str(error)
            problem = f'{host} cannot be reached ({reason})'
            raise _download_failed(spec.name, root, problem) from None


def _drop_damaged_downloads(spec: ImageSet, folder: pathlib.Path) -> None:
    """Removes files of earlier downloads that are not, byte for byte, the published ones."""
    published = {d.sha256 for d in spec.downloads}
    for path in folder.glob('*'):
        if path.is_dir():  # a download that was cut off
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != '.INFO':
            with path.open('rb') as stream:
                if hashlib.file_digest(stream, 'sha256').hexdigest() not in published:
                    path.unlink()


@contextlib.contextmanager
def _without_rests(folder: pathlib.Path) -> Iterator[None]:
    """Removes what a download left behind that did not end."""
    try:
        yield
    finally:
        for path in folder.glob('*.tmp.*'):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS to its progress bars, on a terminal, and to few attempts at a dead network."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    logger = logging.getLogger('urllib3.connectionpool')
    level, retries = logger.level, downloader.MAX_RETRIES
    logger.setLevel(logging.ERROR)
    downloader.MAX_RETRIES = min(retries, 3)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        downloader.MAX_RETRIES = retries


def _compare(builder: Any) -> None:
    """Reads examples of the new shards back and raises DamagedFile where they differ."""
    for split, arrays in builder.arrays.items():
        source = builder.as_data_source(split)
        total = len(arrays['image'])
        ids = np.unique(np.linspace(0, total - 1, min(500, total)).astype(int)).tolist()
        found = source.__getitems__(ids)
        same = len(source) == total and all(
            np.array_equal(row[feature], arrays[feature][i])
            for i, row in zip(ids, found, strict=True)
            for feature in arrays
        )
        if not same:
            raise store.DamagedFile(
                f'{builder.data_dir}: {split} reads back differently than it was written; '
                'is the disk sound?'
            )


def _check_stored(spec: ImageSet, folder: pathlib.Path) -> str | None:
    """Returns the summary of a set that is prepared and sound, None if there is none."""
    counts = {}
    for split in spec.counts:
        stored = store.read_split(folder, split)
        if stored is None:
            return None
        counts[split] = len(stored.load()['image'])
    return _summary(spec, counts, folder, 'prepared before; sizes and checksums are right')


def _checksum_report(checks: list[Check]) -> str:
    other = [check.file for check in checks if not check.published]
    if not other:
        return f'checksums: {len(checks)} of {len(checks)} files as published'
    return (
        f'checksums: {len(checks) - len(other)} of {len(checks)} files as published, '
        f'not {", ".join(other)}'
    )


def _summary(spec: ImageSet, counts: dict[str, int], folder: pathlib.Path, report: str) -> str:
    numbers = ' + '.join(f'{count:,} {split}' for split, count in counts.items())
    if counts != spec.counts:
        published = ' + '.join(f'{count:,} {split}' for split, count in spec.counts.items())
        numbers += f' (published: {published})'
    shape = 'x'.join(map(str, spec.shape))
    classes = len(spec.classes['label'])
    size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6
    return (
        f'{spec.name} {spec.version}: {numbers} images of {shape}, {classes} classes; '
        f'{report}; {size:.1f} MB in {folder}'
    )
