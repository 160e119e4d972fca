"""idx files, the original format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist)."""

import gzip
import pathlib
import zlib

import numpy as np

from jaxdl.data.images.originals import Arrays, Check, ImageSet, read_bytes
from jaxdl.data.images.originals import md5 as md5sum
from jaxdl.errors import UserError

_IDX_FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


def read_idx(path: pathlib.Path) -> tuple[np.ndarray, str]:
    """Reads an idx file of unsigned bytes, gzip or plain; returns (array, md5 of the plain file).

    Raises UserError where the gzip stream is damaged, the magic number is wrong or the size does
    not fit the header.
    """
    data = read_bytes(path)
    if data[:2] == b'\x1f\x8b':
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f'{path}: damaged gzip file ({error}); copy or download it again'
            ) from None
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
    expected = 4 + 4 * rank + int(np.prod(shape, dtype=np.int64))
    if not shape or len(data) != expected:
        raise UserError(
            f'{path}: the header says {list(shape)}, which is {expected} bytes, but it has '
            f'{len(data)}; copy or download it again'
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape), md5sum(data)


def idx_set(name: str, md5s: dict[str, str], **known) -> ImageSet:
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
