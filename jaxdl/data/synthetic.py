"""Made-up images, for tests and measurements of speed; never a stand-in for real data."""

import dataclasses

import numpy as np

from jaxdl.api import DataSet, Source
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import at_least


@dataclasses.dataclass
class SyntheticImages(DataSet):
    """Images that can be learned: each class is a coarse random pattern, each example adds noise.

    Batches of 'image' uint8 [batch, height, width, channels] and 'label' int32 [batch]; a pure
    function of the fields.

    Attributes:
        num_examples: size of the training set.
        shape: height, width and channels of an image.
        num_classes: number of classes; all are equally frequent.
        seed: decides the patterns, the labels and the noise.
        num_eval_examples: size of the evaluation set 'test'.
        noise: standard deviation of the noise, in units of the full range of a pixel.
    """

    num_examples: int = 1024
    shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    seed: int = 0
    num_eval_examples: int = 256
    noise: float = 0.2

    def check(self):
        """Raises ValueError where a field is out of range."""
        at_least(self, num_examples=1, num_classes=1, num_eval_examples=1, noise=0)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f'shape={self.shape}: must be (height, width, channels), each above 0')

    def train_source(self) -> Source:
        """Returns the training set."""
        return self._examples(self.num_examples, part=0)

    def eval_sources(self) -> dict[str, Source]:
        """Returns {'test': examples of the same classes with other noise}."""
        return {'test': self._examples(self.num_eval_examples, part=1)}

    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes, which are their numbers."""
        return tuple(str(number) for number in range(self.num_classes))

    def _examples(self, count: int, *, part: int) -> ArraySource:
        height, width, channels = self.shape
        coarse = np.random.default_rng([self.seed, 0]).random((self.num_classes, 4, 4, channels))
        rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
        patterns = (coarse[:, rows][:, :, columns] * 255).astype(np.float32)
        generator = np.random.default_rng([self.seed, 1 + part])
        label = generator.permutation(np.arange(count) % self.num_classes).astype(np.int32)
        image = generator.standard_normal((count, *self.shape), dtype=np.float32)
        image *= np.float32(255 * self.noise)
        image += patterns[label]
        return ArraySource({'image': np.clip(image, 0, 255).astype(np.uint8), 'label': label})
