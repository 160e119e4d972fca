"""A decoder of 6.7 billion parameters on text of your own: --config.data.source.train='FILES*.jsonl.gz'.

Shape, vocabulary, batch and rate are those of Llama 2 7B (arXiv:2307.09288), the length of the run is
20 tokens a parameter (arXiv:2203.15556). Needs at least 8 GPUs of 80 GB; not run by this project.
docs/scaling.md says which layout and how many parts suit how many GPUs.
"""

from jaxdl.core.config import Checkpoint, Config, Mesh
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Packed
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bpe
from jaxdl.models.transformer import modern
from jaxdl.tasks.language_model import LanguageModel


def get_config() -> Config:
    return Config(
        model=modern(
            vocab=32000,
            width=4096,
            layers=32,
            heads=32,
            mlp_width=11008,
            qk_norm=False,
            head_chunks=8,
            scan_layers=True,
            remat='full',
            dtype='bfloat16',
        ),
        task=LanguageModel(sample_tokens=100),
        data=Documents(
            source=TextFiles(), tokenizer=Bpe(vocab_size=32000), length=4096, packing=Packed()
        ),
        optimizer=AdamW(
            learning_rate=3e-4,
            schedule=Cosine(warmup=0.06, final=0.1),
            weight_decay=0.1,
            b2=0.95,
            clip_norm=1.0,
        ),
        batch_size=1024,
        accumulate=32,
        steps=32_000,
        mesh=Mesh(data=1, fsdp=-1),
        log_every=10,
        eval_batch_size=64,
        eval_every=1000,
        checkpoint=Checkpoint(every=500),
    )
