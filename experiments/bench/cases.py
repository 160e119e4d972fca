"""What the step benchmark runs: each case names its shapes once, for both libraries."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and its batch.

    Attributes:
        name: what --model calls it.
        kind: 'images', 'tokens', 'masked', 'rnn' or 'loader'.
        batch: examples of a step on a CPU.
        gpu_batch: examples of a step on a GPU.
        sizes: what the builders of both libraries read.
    """

    name: str
    kind: str
    batch: int
    gpu_batch: int
    sizes: dict


CASES = {
    case.name: case
    for case in (
        Case('cnn', 'images', 128, 1024, dict(channels=(32, 64, 128), convs=2, dense=128)),
        Case('resnet18', 'images', 128, 1024, dict(depth=18, width=32)),
        Case('resnet20', 'images', 128, 1024, dict(depth=20, width=16)),
        Case('vit_ti', 'images', 64, 1024, dict(width=192, layers=12, heads=3, patch=4)),
        Case(
            'transformer',
            'tokens',
            16,
            128,
            dict(vocab=256, time=256, width=384, layers=6, heads=6),
        ),
        Case(
            'transformer_50k',
            'tokens',
            4,
            64,
            dict(vocab=50304, time=256, width=384, layers=6, heads=6),
        ),
        Case('lstm', 'rnn', 32, 256, dict(vocab=256, time=128, width=512)),
        Case(
            'bert_base',
            'masked',
            4,
            128,
            dict(vocab=30522, time=128, width=768, layers=12, heads=12, masked=20),
        ),
        Case(
            'bert_large',
            'masked',
            1,
            16,
            dict(vocab=30522, time=512, width=1024, layers=24, heads=16, masked=77),
        ),
        Case('loader', 'loader', 512, 512, dict(count=60_000)),
    )
}

# What is added to PyTorch's ways on a GPU: compiled with CUDA graphs.
GRAPHS = {
    'images': 'torch channels_last compile graphs',
    'tokens': 'torch compile graphs',
    'masked': 'torch compile graphs',
}
# Names of the ways to run a case; those of PyTorch compete, and the best of one dtype counts.
TORCH = {
    'images': {
        'float32': ('torch', 'torch channels_last', 'torch channels_last compile'),
        'bfloat16': ('torch channels_last bfloat16', 'torch channels_last compile bfloat16'),
    },
    'tokens': {
        'float32': ('torch', 'torch compile'),
        'bfloat16': ('torch bfloat16', 'torch compile bfloat16'),
    },
    'masked': {
        'float32': ('torch', 'torch compile'),
        'bfloat16': ('torch bfloat16', 'torch compile bfloat16'),
    },
    'rnn': {'float32': ('torch',), 'bfloat16': ('torch bfloat16',)},
    'loader': {'float32': ('torch workers=2',)},
}
# Ours; where it is more than one way, each stands against PyTorch's best.
OURS = {'loader': ('jaxdl device', 'jaxdl host', 'jaxdl stream')}
