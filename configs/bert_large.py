"""BERT-large, 336 million parameters, pre-trained on text of your own: --config.data.source.train='FILES*.txt.gz'.

    (default)       masked language modelling alone, documents packed;
    :next_sentence  with BERT's second objective, as published.
Batch, rate and length of the run are those of arXiv:1810.04805; not run by this project. A published
vocabulary instead of byte pairs: set the tokenizer to WordPiece(vocab='vocab.txt') in a copy of this.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.masked import Masked
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bpe
from jaxdl.models.bert import bert_large
from jaxdl.tasks.masked_lm import MaskedLM

VARIANTS = ('', 'next_sentence')


def get_config(variant: str = '') -> Config:
    packing = {'': Masked(), 'next_sentence': Masked(next_sentence=True)}[variant]
    tokenizer = Bpe(vocab_size=30522)
    return Config(
        model=bert_large(vocab_multiple=128, dtype='bfloat16', scan_layers=True),
        task=MaskedLM(vocab_size=tokenizer.vocab_size, mask_token=tokenizer.mask),
        data=Documents(
            source=TextFiles(documents='paragraph'),
            tokenizer=tokenizer,
            length=512,
            packing=packing,
        ),
        optimizer=AdamW(
            learning_rate=1e-4,
            schedule=Linear(warmup=0.01),
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        batch_size=256,
        accumulate=8,
        steps=1_000_000,
        log_every=100,
        eval_every=10_000,
        checkpoint=Checkpoint(every=2000),
    )
