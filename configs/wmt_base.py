"""The Transformer (base) on WMT14, English to German, after arXiv:1706.03762; not run by this project.

The text comes from TensorFlow Datasets: python -m jaxdl prepare wmt14_translate/de-en
At the end test/bleu is sacrebleu's on newstest2014; the paper's is tokenised and not the same.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, InverseSqrt
from jaxdl.data.text.pairs import SentencePairs
from jaxdl.data.text.sources import TfdsText
from jaxdl.data.text.tokenizers import Bpe
from jaxdl.models.seq2seq import base
from jaxdl.tasks.translation import Translation


def get_config() -> Config:
    return Config(
        model=base(vocab=37000, vocab_multiple=128, dtype='bfloat16'),
        task=Translation(label_smoothing=0.1, bleu_examples=5000),
        data=SentencePairs(
            source=TfdsText(
                'wmt14_translate/de-en', fields=('en', 'de'), evals=('valid=validation', 'test')
            ),
            tokenizer=Bpe(vocab_size=37000),
            source_length=256,
            target_length=256,
            long='drop',
        ),
        optimizer=AdamW(
            learning_rate=7e-4,
            schedule=InverseSqrt(warmup=0.04),
            b2=0.98,
            eps=1e-9,
        ),
        batch_size=128,  # rows, about 25,000 tokens of each language
        accumulate=1,
        steps=100_000,
        ema=0.02,
        log_every=100,
        eval_every=5000,
        checkpoint=Checkpoint(every=2500),
    )
