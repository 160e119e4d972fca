"""Sentiment of film reviews by a bidirectional LSTM.

(default)  IMDB through TensorFlow Datasets: python -m jaxdl prepare imdb_reviews
:files     texts of your own with labels, --config.data.source.train=FILE.tsv (text, tab, label from 0),
           [--config.data.source.evals="('test=FILE.tsv',)"]
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.text.labels import LabelledTexts
from jaxdl.data.text.sources import TextFiles, TfdsText
from jaxdl.data.text.tokenizers import Bpe
from jaxdl.models.rnn import RnnClassifier
from jaxdl.tasks.sequence_classification import SequenceClassification

VARIANTS = ('', 'files')


def get_config(variant: str = '') -> Config:
    source = {'': TfdsText('imdb_reviews'), 'files': TextFiles()}[variant]
    return Config(
        model=RnnClassifier(
            vocab=8192, embed_width=128, width=128, pooling='max', dropout=0.4, num_classes=2
        ),
        task=SequenceClassification(label_smoothing=0.05),
        data=LabelledTexts(source=source, tokenizer=Bpe(vocab_size=8192), length=400),
        optimizer=AdamW(
            learning_rate=2e-3, schedule=Cosine(warmup=0.05), weight_decay=0.01, clip_norm=1.0
        ),
        batch_size=64,
        eval_batch_size=100,
        steps=5 * 25_000 // 64,
        ema=0.02,
        log_every=50,
        eval_every=390,
        checkpoint=Checkpoint(every=390),
    )
