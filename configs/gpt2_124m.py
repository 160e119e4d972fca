"""GPT-2 (124M) from scratch on text of your own: --config.data.source.train='FILES*.jsonl.gz'.

10 billion tokens in batches of half a million, as GPUs do it; not run by this project. Public
weights: python -m jaxdl interchange. Fewer GPUs or less memory: a larger --config.accumulate.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Packed
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bpe
from jaxdl.models.transformer import gpt2
from jaxdl.tasks.language_model import LanguageModel


def get_config() -> Config:
    return Config(
        model=gpt2('124m', vocab_multiple=128, dtype='bfloat16'),
        task=LanguageModel(sample_tokens=100),
        data=Documents(
            source=TextFiles(), tokenizer=Bpe(vocab_size=50257), length=1024, packing=Packed()
        ),
        optimizer=AdamW(
            learning_rate=6e-4,
            schedule=Cosine(warmup=0.04, final=0.1),
            weight_decay=0.1,
            b2=0.95,
            clip_norm=1.0,
        ),
        batch_size=512,
        eval_batch_size=64,
        accumulate=8,
        steps=19_000,
        log_every=10,
        eval_every=500,
        checkpoint=Checkpoint(every=500),
    )
