"""TFDS builders of the image data sets that jaxdl prepares itself; none of them needs TensorFlow.

Images are stored as raw bytes: reading them is a copy, there is no PNG to decode. The examples keep
the order of the original files.
"""

import pathlib

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import units
from tensorflow_datasets.core.download import checksums

from jaxdl.data.images import catalogue
from jaxdl.data.images.originals import Arrays, Check, ImageSet, check_arrays


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds the data set SPEC from `files`, or without them from the network.

    After `download_and_prepare`, `arrays` and `checks` hold what was read.
    """

    SPEC: ImageSet
    pkg_dir_path = None

    def __init__(self, *, files: dict[str, pathlib.Path] | None = None, **kwargs):
        super().__init__(**kwargs)
        self._files = files
        self.arrays: Arrays = {}
        self.checks: list[Check] = []

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.SPEC
        image = tfds.features.Tensor(shape=spec.shape, dtype=np.uint8, encoding='bytes')
        labels = {
            feature: tfds.features.ClassLabel(names=names)
            for feature, names in spec.classes.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=spec.title,
            homepage=spec.homepage,
            features=tfds.features.FeaturesDict({'image': image, **labels}),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        files = self._files
        if files is None:
            paths = dl_manager.download({d.filename: d.url for d in self.SPEC.downloads})
            files = {name: pathlib.Path(path) for name, path in paths.items()}
        self.arrays, self.checks = self.SPEC.read(files)
        check_arrays(self.SPEC, self.arrays)
        return {split: self._generate_examples(rows) for split, rows in self.arrays.items()}

    def _generate_examples(self, rows: dict[str, np.ndarray]):
        labels = {feature: rows[feature] for feature in self.SPEC.classes}
        for index, image in enumerate(rows['image']):
            yield index, {'image': image, **{f: int(v[index]) for f, v in labels.items()}}


def builder_class(spec: ImageSet) -> type[ImageBuilder]:
    """Makes the TFDS builder of a data set; TFDS's own builder of that name stays reachable."""
    infos = {
        d.url: checksums.UrlInfo(size=units.Size(d.size), checksum=d.sha256, filename=d.filename)
        for d in spec.downloads
    }

    class Builder(ImageBuilder, skip_registration=True):
        name = spec.name
        SPEC = spec
        VERSION = tfds.core.Version(spec.version)
        url_infos = infos

    Builder.__name__ = ''.join(part.capitalize() for part in spec.name.split('_'))
    return Builder


Digits = builder_class(catalogue.DIGITS)
Mnist = builder_class(catalogue.MNIST)
FashionMnist = builder_class(catalogue.FASHION_MNIST)
Cifar10 = builder_class(catalogue.CIFAR10)
Cifar100 = builder_class(catalogue.CIFAR100)
