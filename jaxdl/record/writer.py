"""All that a run writes while it trains; only the chief process writes anything."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdl.core.config import Config
from jaxdl.errors import UserError
from jaxdl.record.folder import Workdir
from jaxdl.record.gallery import Gallery
from jaxdl.record.metrics_file import MetricsFile
from jaxdl.record.pictures import confusion_image, encode_png
from jaxdl.record.run_info import RunInfo
from jaxdl.record.samples import SamplesFile
from jaxdl.record.tensorboard import TensorBoard


@dataclasses.dataclass
class Result:
    """How a run ended.

    Attributes:
        steps: completed optimizer steps.
        metrics: the last value of each metric, floats.
        workdir: the run's folder.
    """

    steps: int
    metrics: dict[str, float]
    workdir: Workdir


class Record:
    """config.json, run.json, metrics.jsonl, TensorBoard, samples/, samples.jsonl of one run.

    Args:
        place: the run's folder.
        chief: if False, every method does nothing.
        sample_ids: whether to write samples.jsonl.
    """

    def __init__(self, place: Workdir, *, chief: bool, sample_ids: bool):
        self.place, self.chief, self.sample_ids = place, chief, sample_ids
        self.info: RunInfo | None = None
        self._open: list[Any] = []

    # ---- config.json and run.json ----

    def begin(self, config: Config, **facts: Any) -> None:
        """Writes config.json and run.json: from here on the folder holds this run.

        Raises:
            UserError: the folder cannot be written.
        """
        if not self.chief:
            return
        try:
            self.info = self.place.begin(config, **facts)
        except OSError as error:
            raise UserError(
                f'--workdir={self.place.path} cannot be written: {error.strerror or error}; '
                'make room there, or give another --workdir'
            ) from None

    def keep_data(self, data: Any) -> None:
        """Lets the data set save its files into the folder, or compare them with those there."""
        if self.chief:
            data.keep(self.place.path)

    def note(self, **fields: Any) -> None:
        if self.info is not None:
            self.info.update(**fields)

    def end(self, status: str, reason: str, **fields: Any) -> None:
        if self.info is not None:
            self.info.end(status, reason, **fields)

    # ---- the logs ----

    def open(self, step: int) -> None:
        """Opens the files as of `step`: incomplete and later lines are dropped."""
        if self.chief:
            self.file = MetricsFile(self.place.metrics, last_step=step)
            self.tensorboard = TensorBoard(self.place.tensorboard, last_step=step)
            self.gallery = Gallery(self.place.gallery, last_step=step)
            self._open = [self.file, self.tensorboard, self.gallery]
            if self.sample_ids:
                self.samples = SamplesFile(self.place.samples, last_step=step)
                self._open.append(self.samples)

    def write(self, step: int, row: dict[str, float]) -> None:
        if self.chief:
            self.file.write(step, row)
            self.tensorboard.scalars(step, row)

    def sampled(self, first: int, ids: np.ndarray) -> None:
        """Writes the ids [steps, batch] that the steps `first`, first + 1, … are trained on."""
        if self.chief and self.sample_ids:
            for step, row in enumerate(ids, first):
                self.samples.write(step, row.tolist())

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        if self.chief:
            png = encode_png(image)
            self.tensorboard.image(step, name, png)
            self.gallery.picture(step, name, png)

    def results(self, step: int, found: dict, generated: Any, class_names: Sequence[str]) -> None:
        """Writes the pictures and texts of an evaluation: confusion matrices, generated texts."""
        if not self.chief:
            return
        for name, value in found.items():
            if isinstance(value, np.ndarray) and value.ndim == 2:
                self.image(step, name, confusion_image(value, class_names))
        if generated is not None:
            for name, picture in generated.pictures.items():
                self.image(step, f'eval/{name}', picture)
            for name, text in generated.texts.items():
                self.tensorboard.text(step, f'eval/{name}', text)
                self.gallery.text(step, f'eval/{name}', text)
            if generated.notes:
                self.note(scores=generated.notes)

    def truncate(self, step: int) -> None:
        """Drops everything after `step`, for a roll-back to a checkpoint."""
        for log in self._open:
            log.truncate(step)

    def flush(self) -> None:
        """Forces everything onto the disk (fsync); call it before a checkpoint becomes valid."""
        for log in self._open:
            log.flush()

    def close(self) -> None:
        for log in self._open:
            log.close()
