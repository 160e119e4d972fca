"""The 1,797 handwritten digits that scikit-learn ships (Alpaydin and Kaynak, UCI, 1998).

Read straight from scikit-learn's data file, without importing scikit-learn and without a network.
"""

import importlib.util
import io
import pathlib

import numpy as np

from jaxdl.data.images.originals import md5_of, read_bytes, unpacked
from jaxdl.errors import UserError

CLASSES = tuple('0123456789')
MD5 = 'a0339c30a8a5312a1b6f9e5c719dcce5'  # of the uncompressed csv


def load() -> dict[str, dict[str, np.ndarray]]:
    """Returns {'train', 'test'} of 'image' uint8 [n, 8, 8, 1] and 'label' int32 [n].

    Every fifth example (index % 5 == 4) is the test set. The 17 grey levels are spread over 0–255.
    Raises UserError if scikit-learn or its file is missing or the file is damaged.
    """
    spec = importlib.util.find_spec('sklearn')  # finds the folder, imports nothing
    if spec is None or spec.origin is None:
        raise UserError('digits: needs scikit-learn for its data file; pip install scikit-learn')
    path = pathlib.Path(spec.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'
    text = unpacked(read_bytes(path), path)
    if md5_of(text) != MD5:
        raise UserError(f'digits: {path} is not the file that scikit-learn ships; reinstall it')
    table = np.loadtxt(io.BytesIO(text), delimiter=',', dtype=np.uint8)
    image = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    label = table[:, 64].astype(np.int32)
    test = np.arange(len(label)) % 5 == 4
    return {
        name: {'image': image[rows], 'label': label[rows]}
        for name, rows in (('train', ~test), ('test', test))
    }
