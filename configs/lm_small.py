"""A small Transformer language model on text of your own: --config.data.source.train=FILE (.txt, .jsonl, .gz …).

    (default)  byte pairs, 8192 of them, for some tens of megabytes of text; meant for half an hour
               on two CPU cores;
    :bytes     bytes, for a few megabytes, such as some novels.
Evaluation sets: --config.data.source.evals="('valid=FILE', 'test=FILE')".
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import Cosine, Muon
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Concatenated, Packed
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bpe, Bytes
from jaxdl.models.transformer import modern
from jaxdl.tasks.language_model import LanguageModel

VARIANTS = ('', 'bytes')


def get_config(variant: str = '') -> Config:
    tokenizer, packing, steps, dropout = {
        '': (Bpe(vocab_size=8192), Packed(context=128), 1400, 0.0),
        'bytes': (Bytes(), Concatenated(context=128), 2000, 0.1),
    }[variant]
    return Config(
        model=modern(
            vocab=tokenizer.vocab_size,
            width=256,
            layers=4,
            heads=4,
            dropout=dropout,
            head_chunks=0 if variant else 1,
        ),
        task=LanguageModel(sample_tokens=100),
        data=Documents(source=TextFiles(), tokenizer=tokenizer, length=256, packing=packing),
        optimizer=Muon(
            learning_rate=0.02,
            schedule=Cosine(warmup=0.03, final=0.02),
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        batch_size=16,
        eval_batch_size=32,
        steps=steps,
        log_every=50,
        eval_every=steps // 2,
        checkpoint=Checkpoint(every=200),
    )
