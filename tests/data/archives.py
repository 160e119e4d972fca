"""Writes small image data sets in their original formats."""

import gzip
import io
import pathlib
import pickle
import struct
import tarfile

import numpy as np

IDX_STEMS = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


def random_set(shape, classes, train=60, test=20, seed=0, coarse=0):
    """Returns {'train', 'test'} of random 'image', 'label' and, if asked for, 'coarse_label'."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for split, count in (('train', train), ('test', test)):
        arrays[split] = {
            'image': generator.integers(0, 256, (count, *shape), dtype=np.uint8),
            'label': generator.integers(0, classes, count).astype(np.int32),
        }
        if coarse:
            arrays[split]['coarse_label'] = generator.integers(0, coarse, count).astype(np.int32)
    return arrays


def idx_bytes(array):
    """An array of bytes as an idx file."""
    array = np.asarray(array, np.uint8)
    header = struct.pack('>BBBB', 0, 0, 8, array.ndim) + struct.pack(
        f'>{array.ndim}I', *array.shape
    )
    return header + array.tobytes()


def write_idx(folder, arrays, compress=True):
    """Writes the four files of MNIST."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in IDX_STEMS.items():
        for stem, array in (
            (images, arrays[split]['image'][..., 0]),
            (labels, arrays[split]['label']),
        ):
            data = idx_bytes(array)
            if compress:
                (folder / f'{stem}.gz').write_bytes(gzip.compress(data, mtime=0))
            else:
                (folder / stem).write_bytes(data)


def cifar_members(arrays, binary=True):
    """Returns {file name: bytes} of CIFAR-10, or of CIFAR-100 if there are coarse labels."""
    fine_only = 'coarse_label' not in arrays['train']
    members = {}
    for split, rows in arrays.items():
        if fine_only:
            parts = np.array_split(np.arange(len(rows['label'])), 5 if split == 'train' else 1)
            names = [f'data_batch_{i}' for i in range(1, 6)] if split == 'train' else ['test_batch']
        else:
            parts, names = [np.arange(len(rows['label']))], [split]
        for name, ids in zip(names, parts, strict=True):
            planes = rows['image'][ids].transpose(0, 3, 1, 2).reshape(len(ids), -1)
            if binary:
                columns = [rows['label'][ids, None].astype(np.uint8), planes]
                if not fine_only:
                    columns.insert(0, rows['coarse_label'][ids, None].astype(np.uint8))
                members[f'{name}.bin'] = np.concatenate(columns, axis=1).tobytes()
            else:
                batch = {
                    b'data': planes,
                    b'labels' if fine_only else b'fine_labels': rows['label'][ids].tolist(),
                }
                if not fine_only:
                    batch[b'coarse_labels'] = rows['coarse_label'][ids].tolist()
                members[name] = pickle.dumps(batch, protocol=2)
    return members


def write_tar(path, folder, members):
    """Writes a .tar.gz with the members in a folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz') as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(f'{folder}/{name}')
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_cifar10(folder, arrays):
    """Writes cifar-10-binary.tar.gz."""
    write_tar(
        pathlib.Path(folder) / 'cifar-10-binary.tar.gz',
        'cifar-10-batches-bin',
        cifar_members(arrays),
    )
