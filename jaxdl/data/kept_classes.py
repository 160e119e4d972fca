"""What data sets share whose classes are found in the training examples."""

import abc
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from jaxdl.api import DataSet, Task, facts_of
from jaxdl.data.classes import listed
from jaxdl.errors import UserError
from jaxdl.files import read_object, write_bytes

FILE = 'labels.json'


@dataclasses.dataclass
class KeptClasses(DataSet, abc.ABC):
    """A data set whose labels are numbered by what is there; a run keeps the numbers.

    So a trained model is evaluated with the classes that it was trained on, whatever was added to
    the files, and without its training examples.
    """

    kept: ClassVar = (FILE,)
    _recalled: ClassVar[dict[str, Any]] = {}

    @abc.abstractmethod
    def read_classes(self) -> tuple[str, ...]:
        """The classes of the training examples in order; () if the labels are no classes."""

    def facts(self) -> dict[str, Any]:
        """What a run keeps of the training examples, as JSON."""
        return {'classes': list(self.class_names())}

    def check_classes(self) -> None:
        """Raises ValueError where the field `classes` cannot be right."""
        names = getattr(self, 'classes', ())
        if len(set(names)) < len(names) or '' in names:
            raise ValueError(f'classes={names}: must be different names')

    def class_names(self) -> tuple[str, ...]:
        given = getattr(self, 'classes', ())
        if given or 'classes' in self._recalled:
            return tuple(given or self._recalled['classes'])
        names = self.read_classes()
        if len(names) == 1:
            raise UserError(
                f'--config.data: all training examples have the label {names[0]!r}; a classifier '
                'needs at least two classes'
            )
        return names

    def check_with(self, model: Any, task: Task) -> None:
        """Raises UserError where model and task have another number of classes."""
        names = self.class_names()
        if not names:
            return
        wanted = {
            'task': task.ranges(facts_of(model).limits()).get('label'),
            'model': facts_of(model).limits().classes,
        }
        for part, number in wanted.items():
            if number is not None and number != len(names):
                raise UserError(
                    f'--config.{part}.num_classes={number}: the data has {len(names)} classes '
                    f'({listed(names)}); give --config.{part}.num_classes={len(names)}'
                )

    def keep(self, folder: str | os.PathLike) -> None:
        facts = self.facts()
        path = Path(folder) / FILE
        if path.exists():
            if read_object(path) != json.loads(json.dumps(facts)):
                raise UserError(
                    f'{path}: the training examples have other classes or columns than those that '
                    'the run began with; put them back, or give another --workdir'
                )
            return
        write_bytes(path, (json.dumps(facts, ensure_ascii=False, indent=1) + '\n').encode())

    def recall(self, folder: str | os.PathLike) -> None:
        path = Path(folder) / FILE
        try:
            self._recalled = read_object(path)  # pyright: ignore[reportAttributeAccessIssue]
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: cannot be read ({error}); put it back') from None
