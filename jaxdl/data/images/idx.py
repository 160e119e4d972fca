"""idx files, the original format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist)."""

import math
import pathlib

import numpy as np

from jaxdl.data.images.originals import (
    Arrays,
    Check,
    ImageSet,
    md5_of,
    read_bytes,
    unpacked,
)
from jaxdl.errors import UserError

_IDX_FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
PUBLISHED: dict[str, str] = {}  # md5 -> 'SET: FILE' of every set below: their files share names


def read_idx(path: pathlib.Path) -> tuple[np.ndarray, str]:
    """Reads an idx file of unsigned bytes, gzip or plain; returns (array, md5 of the plain file).

    Raises UserError where the gzip stream is damaged, the magic number is wrong or the size does
    not fit the header.
    """
    data = unpacked(read_bytes(path), path)
    if len(data) < 4 or data[:3] != b'\x00\x00\x08' or not 1 <= data[3] <= 4:
        raise UserError(
            f'{path}: not an idx file of bytes: it starts with {data[:4].hex() or "nothing"}, '
            'not 00000801 (labels) or 00000803 (images)'
        )
    rank = data[3]
    shape = (
        tuple(int(n) for n in np.frombuffer(data, '>u4', rank, 4))
        if len(data) >= 4 + 4 * rank
        else ()
    )
    expected = 4 + 4 * rank + math.prod(shape)
    if not shape or 0 in shape or len(data) != expected:
        raise UserError(
            f'{path}: the header says {list(shape)}, which is {expected} bytes, and the file has '
            f'{len(data)}; copy or download it again'
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape), md5_of(data)


def idx_set(name: str, md5s: dict[str, str], **known) -> ImageSet:
    """A set of four idx files; `md5s` are those of the plain files."""
    PUBLISHED.update({md5: f'{name}: {stem}' for stem, md5 in md5s.items()})

    def find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
        files, missing = {}, []
        for stem in sum(_IDX_FILES.values(), ()):
            dotted = stem.replace('-idx', '.idx')  # as some mirrors unpack them
            names = (f'{stem}.gz', stem, f'{dotted}.gz', dotted)
            found = [folder / n for n in names if (folder / n).is_file()]
            if found:
                files[f'{stem}.gz'] = found[0]
            else:
                missing.append(f'{stem}.gz')
        if missing:
            raise UserError(
                f'{name}: {folder} lacks {", ".join(missing)}\n'
                'give the folder with the four original files, gzip or plain'
            )
        return files

    def read(files: dict[str, pathlib.Path]) -> tuple[Arrays, list[Check]]:
        arrays: Arrays = {}
        checks = []
        for split, stems in _IDX_FILES.items():
            rows = []
            for stem, rank in zip(stems, (3, 1), strict=True):
                path = files[f'{stem}.gz']
                array, md5 = read_idx(path)
                if PUBLISHED.get(md5, f'{name}: {stem}') != f'{name}: {stem}':
                    raise UserError(
                        f'{path}: this is {PUBLISHED[md5]}, not {name}: {stem}; '
                        'give the folder of the right set, each file under its own name'
                    )
                if array.ndim != rank:
                    raise UserError(
                        f'{path}: has {array.ndim} dimensions, {stem} has {rank}; '
                        'were images and labels exchanged?'
                    )
                rows.append(array)
                checks.append(Check(stem, md5 == md5s[stem]))
            arrays[split] = {'image': rows[0][..., None], 'label': rows[1].astype(np.int32)}
        return arrays, checks

    return ImageSet(
        name=name,
        version='1.0.0',
        shape=(28, 28, 1),
        counts={'train': 60_000, 'test': 10_000},
        find=find,
        read=read,
        **known,
    )
