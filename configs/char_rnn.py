"""A recurrent language model on bytes: an LSTM, or a GRU.

(default), :gru          on the Python standard library's source, which every machine has;
:files, :files_gru       on text of your own, --config.data.source.train=FILE [--config.data.source.evals="('valid=FILE',)"]
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Concatenated
from jaxdl.data.text.sources import StandardLibrary, TextFiles
from jaxdl.models.rnn import RnnLM
from jaxdl.tasks.language_model import LanguageModel

VARIANTS = ('', 'gru', 'files', 'files_gru')


def get_config(variant: str = '') -> Config:
    source, cell = {
        '': (StandardLibrary(), 'lstm'),
        'gru': (StandardLibrary(), 'gru'),
        'files': (TextFiles(), 'lstm'),
        'files_gru': (TextFiles(), 'gru'),
    }[variant]
    return Config(
        model=RnnLM(vocab=260, cell=cell, width=512, layers=2, dropout=0.1),
        task=LanguageModel(sample_tokens=200),
        data=Documents(source=source, length=128, packing=Concatenated(context=64)),
        optimizer=AdamW(
            learning_rate=2e-3,
            schedule=Cosine(warmup=0.03, final=0.02),
            weight_decay=0.01,
            b2=0.98,
            clip_norm=1.0,
        ),
        batch_size=32,
        steps=2000,
        log_every=50,
        eval_every=500,
        checkpoint=Checkpoint(every=500),
    )
