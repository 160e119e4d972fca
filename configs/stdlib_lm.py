"""A byte-level Transformer on the Python standard library's own source: no file, no network.

Meant for a quarter of an hour on two CPU cores. Afterwards:
    python -m jaxdl sample --workdir=… --prompt="def "
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import Cosine, Muon
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Packed
from jaxdl.data.text.sources import StandardLibrary
from jaxdl.models.transformer import modern
from jaxdl.tasks.language_model import LanguageModel


def get_config() -> Config:
    return Config(
        model=modern(vocab=260, width=256, layers=4, heads=4),
        task=LanguageModel(sample_tokens=200, sample_prompt='def '),
        data=Documents(source=StandardLibrary(), length=256, packing=Packed(context=128)),
        optimizer=Muon(
            learning_rate=0.02,
            schedule=Cosine(warmup=0.03, final=0.05),
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        batch_size=16,
        eval_batch_size=32,
        steps=600,
        log_every=20,
        eval_every=300,
        checkpoint=Checkpoint(every=250),
    )
