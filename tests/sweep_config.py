"""A config for sweeps in tests: small.config as a file, and data that goes wrong on demand."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

from jaxdl.api import DataSet, Source
from jaxdl.core.config import Config
from jaxdl.data.images.tfds import Tfds
from tests import small


@dataclasses.dataclass
class Faulty(DataSet):
    """The digits, or a fault when the training set is opened.

    Attributes:
        fault: 'crash', 'memory', 'killed', 'hang', 'once' (crashes the first time), 'tell' (writes
            its GPU variables into a file) or ''.
        mark: file by which 'once' remembers; folder where 'tell' writes.
        delay: seconds that every batch takes longer.
    """

    fault: str = ''
    mark: str = ''
    delay: float = 0.0

    def train_source(self):
        if self.fault == 'crash':
            raise RuntimeError('the disk is on fire')
        if self.fault == 'memory':
            raise MemoryError(
                'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9e9 bytes'
            )
        if self.fault == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == 'tell':
            names = ('CUDA_VISIBLE_DEVICES', 'XLA_CLIENT_MEM_FRACTION')
            told = Path(self.mark) / f'{os.getpid()}.json'
            told.write_text(json.dumps([os.environ.get(name) for name in names]))
        if self.fault == 'hang':
            time.sleep(3600)
        if self.fault == 'once' and not os.path.exists(self.mark):
            Path(self.mark).touch()
            raise RuntimeError('a passing trouble')
        source = Tfds('digits').train_source()
        return Slow(source, self.delay) if self.delay else source

    def eval_sources(self):
        return Tfds('digits').eval_sources()


class Slow(Source):
    """A source that takes `delay` seconds more for every batch."""

    def __init__(self, source, delay):
        self.source, self.delay = source, delay

    def __len__(self):
        return len(self.source)

    def fetch(self, ids):
        time.sleep(self.delay)
        return self.source.fetch(ids)


def get_config(variant: str = '') -> Config:
    return small.config(data=Faulty()) if variant == 'faulty' else small.config()
