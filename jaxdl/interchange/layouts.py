"""Which tensor of Hugging Face's BERT, GPT-2 and ViT holds which parameter of ours."""

import dataclasses
from typing import Any

import numpy as np

from jaxdl.errors import UserError
from jaxdl.models.bert import Bert, BertClassifier
from jaxdl.models.stack import Transformer
from jaxdl.models.transformer import TransformerLM
from jaxdl.models.vit import ViT

ACTIVATIONS = {'gelu': 'gelu', 'gelu_tanh': 'gelu_new', 'relu': 'relu'}


@dataclasses.dataclass
class Entry:
    """One tensor there and the parameters it holds here.

    Attributes:
        there: its name in Hugging Face's layout.
        here: paths of our parameters, side by side on the last axis if several.
        kind: 'copy', 'linear' (transposed), 'patches' (OIHW there, HWIO here), 'batched' (one more
            first axis there), 'token' (two more) or 'vocab' (rows past the vocabulary are ours only).
        head: part of a head that a fine-tuned model may lack.
    """

    there: str
    here: tuple[str, ...]
    kind: str = 'copy'
    head: bool = False

    def to_here(self, value: np.ndarray, rows: int) -> list[np.ndarray]:
        if self.kind == 'linear':
            value = value.T
        elif self.kind == 'patches':
            value = value.transpose(2, 3, 1, 0)
        elif self.kind == 'batched':
            value = value[0]
        elif self.kind == 'token':
            value = value[0, 0]
        elif self.kind == 'vocab':
            value = np.pad(value, [(0, rows - len(value))] + [(0, 0)] * (value.ndim - 1))
        return [np.ascontiguousarray(part) for part in np.split(value, len(self.here), axis=-1)]

    def to_there(self, values: list[np.ndarray], vocab: int) -> np.ndarray:
        value = values[0] if len(values) == 1 else np.concatenate(values, axis=-1)
        if self.kind == 'linear':
            value = value.T
        elif self.kind == 'patches':
            value = value.transpose(3, 2, 0, 1)
        elif self.kind == 'batched':
            value = value[None]
        elif self.kind == 'token':
            value = value[None, None]
        elif self.kind == 'vocab':
            value = value[:vocab]
        return np.ascontiguousarray(value, np.float32)


@dataclasses.dataclass
class Layout:
    """How one of our models looks in Hugging Face's layout.

    Attributes:
        entries: every tensor.
        config: its config.json.
        decisive: keys of the config that change what the model computes but no tensor's shape.
        prefix: what all names of the body begin with; checkpoints of the bare body lack it.
        ignored: pattern of names that hold nothing of this model: buffers and heads for other tasks.
        tied: {name: name of the tensor that it repeats}.
    """

    entries: list[Entry]
    config: dict[str, Any]
    decisive: tuple[str, ...]
    prefix: str
    ignored: str
    tied: dict[str, str] = dataclasses.field(default_factory=dict)


def layout(model: Any) -> Layout:
    """Returns the layout of `model`.

    Raises:
        UserError: Hugging Face's architecture cannot express the model.
    """
    if isinstance(model, (Bert, BertClassifier)):
        return _bert(model)
    if isinstance(model, TransformerLM):
        return _gpt2(model)
    if isinstance(model, ViT):
        return _vit(model)
    raise UserError(
        f'{type(model).__name__} has no layout at Hugging Face; allowed: Bert, BertClassifier, '
        "TransformerLM of GPT-2's shape, ViT"
    )


def _require(model: Transformer, name: str, **wanted) -> None:
    plain = {
        'norm': 'layer',
        'positions': 'learned',
        'bias': True,
        'qk_norm': False,
        'kv_heads': (0, model.heads),
        'head_dim': (0, model.width // model.heads),
        'activation': tuple(ACTIVATIONS),
        **wanted,
    }
    for field, allowed in plain.items():
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if getattr(model, field) not in allowed:
            raise UserError(
                f'{type(model).__name__}.{field}={getattr(model, field)!r}: {name} has '
                f'{" or ".join(map(repr, allowed))}, so this model cannot be exchanged'
            )


def _norm(there: str, here: str, **kind) -> list[Entry]:
    return [
        Entry(f'{there}.weight', (f'{here}/scale',), **kind),
        Entry(f'{there}.bias', (f'{here}/bias',), **kind),
    ]


def _linear(there: str, here: str, **kind) -> list[Entry]:
    return [
        Entry(f'{there}.weight', (f'{here}/kernel',), 'linear', **kind),
        Entry(f'{there}.bias', (f'{here}/bias',), **kind),
    ]


def _bert(model: Bert | BertClassifier) -> Layout:
    _require(model, 'BERT', pre_norm=False)
    entries = [
        Entry('bert.embeddings.word_embeddings.weight', ('bert/tokens/embedding',), 'vocab'),
        Entry('bert.embeddings.position_embeddings.weight', ('bert/places/embedding',)),
        Entry('bert.embeddings.token_type_embeddings.weight', ('bert/types/embedding',)),
        *_norm('bert.embeddings.LayerNorm', 'bert/embed_norm'),
    ]
    for i in range(model.layers):
        there, here = f'bert.encoder.layer.{i}', f'bert/encoder/layer_{i}'
        for name in ('query', 'key', 'value'):
            entries += _linear(f'{there}.attention.self.{name}', f'{here}/attention/{name}')
        entries += [
            *_linear(f'{there}.attention.output.dense', f'{here}/attention/out'),
            *_norm(f'{there}.attention.output.LayerNorm', f'{here}/attention_norm'),
            *_linear(f'{there}.intermediate.dense', f'{here}/mlp/up'),
            *_linear(f'{there}.output.dense', f'{here}/mlp/down'),
            *_norm(f'{there}.output.LayerNorm', f'{here}/mlp_norm'),
        ]
    entries += _linear('bert.pooler.dense', 'bert/pooler', head=True)
    tied = {}
    if isinstance(model, Bert):
        entries += [
            *_linear('cls.predictions.transform.dense', 'transform', head=True),
            *_norm('cls.predictions.transform.LayerNorm', 'transform_norm', head=True),
            Entry('cls.predictions.bias', ('head/bias',), 'vocab', head=True),
            *_linear('cls.seq_relationship', 'next_sentence', head=True),
        ]
        tied = {
            'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
            'cls.predictions.decoder.bias': 'cls.predictions.bias',
        }
        ignored, name, extra = r'classifier\.', 'BertForPreTraining', {}
    else:
        entries += _linear('classifier', 'head', head=True)
        ignored, name = r'cls\.', 'BertForSequenceClassification'
        extra = _labels(model.num_classes)
    config = {
        'architectures': [name],
        'model_type': 'bert',
        'vocab_size': model.vocab,
        'hidden_size': model.width,
        'num_hidden_layers': model.layers,
        'num_attention_heads': model.heads,
        'intermediate_size': model.hidden,
        'hidden_act': ACTIVATIONS[model.activation],
        'layer_norm_eps': model.norm_epsilon,
        'max_position_embeddings': model.max_length,
        'type_vocab_size': model.token_types,
        'hidden_dropout_prob': model.dropout,
        'attention_probs_dropout_prob': 0.0,
        'initializer_range': model.init_std,
        'tie_word_embeddings': True,
        **extra,
    }
    decisive = ('num_attention_heads', 'hidden_act', 'layer_norm_eps')
    ignored = rf'{ignored}|bert\.embeddings\.position_ids$'
    return Layout(entries, config, decisive, 'bert.', ignored, tied)


def _gpt2(model: TransformerLM) -> Layout:
    _require(model, 'GPT-2', pre_norm=True, tied=True, softcap=0.0)
    entries = [
        Entry('transformer.wte.weight', ('embed/tokens/embedding',), 'vocab'),
        Entry('transformer.wpe.weight', ('embed/places/embedding',)),
    ]
    for i in range(model.layers):
        there, here = f'transformer.h.{i}', f'decoder/layer_{i}'
        for kind in ('weight', 'bias'):
            ours = 'kernel' if kind == 'weight' else 'bias'
            # GPT-2 keeps kernels [in, out] as we do, with queries, keys and values side by side.
            three = tuple(f'{here}/attention/{name}/{ours}' for name in ('query', 'key', 'value'))
            entries += [
                Entry(f'{there}.attn.c_attn.{kind}', three),
                Entry(f'{there}.attn.c_proj.{kind}', (f'{here}/attention/out/{ours}',)),
                Entry(f'{there}.mlp.c_fc.{kind}', (f'{here}/mlp/up/{ours}',)),
                Entry(f'{there}.mlp.c_proj.{kind}', (f'{here}/mlp/down/{ours}',)),
            ]
        entries += _norm(f'{there}.ln_1', f'{here}/attention_norm')
        entries += _norm(f'{there}.ln_2', f'{here}/mlp_norm')
    entries += _norm('transformer.ln_f', 'decoder/final_norm')
    end = 50256 if model.vocab == 50257 else None
    config = {
        'architectures': ['GPT2LMHeadModel'],
        'model_type': 'gpt2',
        'vocab_size': model.vocab,
        'n_embd': model.width,
        'n_layer': model.layers,
        'n_head': model.heads,
        'n_inner': model.hidden,
        'n_positions': model.max_length,
        'activation_function': ACTIVATIONS[model.activation],
        'layer_norm_epsilon': model.norm_epsilon,
        'embd_pdrop': model.dropout,
        'resid_pdrop': model.dropout,
        'attn_pdrop': 0.0,
        'initializer_range': model.init_std or 0.02,
        'tie_word_embeddings': True,
        'bos_token_id': end,
        'eos_token_id': end,
    }
    return Layout(
        entries,
        config,
        ('n_head', 'activation_function', 'layer_norm_epsilon'),
        'transformer.',
        r'.*\.attn\.(masked_)?bias$',
        {'lm_head.weight': 'transformer.wte.weight'},
    )


def _vit(model: ViT) -> Layout:
    _require(model, 'ViT', pre_norm=True, pooling='class')
    entries = [
        Entry('vit.embeddings.cls_token', ('class_token',), 'token'),
        Entry('vit.embeddings.position_embeddings', ('positions',), 'batched'),
        Entry('vit.embeddings.patch_embeddings.projection.weight', ('patches/kernel',), 'patches'),
        Entry('vit.embeddings.patch_embeddings.projection.bias', ('patches/bias',)),
    ]
    for i in range(model.layers):
        there, here = f'vit.encoder.layer.{i}', f'encoder/layer_{i}'
        for name in ('query', 'key', 'value'):
            entries += _linear(f'{there}.attention.attention.{name}', f'{here}/attention/{name}')
        entries += [
            *_linear(f'{there}.attention.output.dense', f'{here}/attention/out'),
            *_linear(f'{there}.intermediate.dense', f'{here}/mlp/up'),
            *_linear(f'{there}.output.dense', f'{here}/mlp/down'),
            *_norm(f'{there}.layernorm_before', f'{here}/attention_norm'),
            *_norm(f'{there}.layernorm_after', f'{here}/mlp_norm'),
        ]
    entries += _norm('vit.layernorm', 'encoder/final_norm')
    entries += _linear('classifier', 'head', head=True)
    config = {
        'architectures': ['ViTForImageClassification'],
        'model_type': 'vit',
        'hidden_size': model.width,
        'num_hidden_layers': model.layers,
        'num_attention_heads': model.heads,
        'intermediate_size': model.hidden,
        'hidden_act': ACTIVATIONS[model.activation],
        'layer_norm_eps': model.norm_epsilon,
        'patch_size': model.patch,
        'hidden_dropout_prob': model.dropout,
        'attention_probs_dropout_prob': 0.0,
        'initializer_range': model.init_std,
        'qkv_bias': True,
        **_labels(model.num_classes),
    }
    decisive = ('num_attention_heads', 'hidden_act', 'layer_norm_eps')
    return Layout(entries, config, decisive, 'vit.', r'vit\.pooler\.')


def _labels(classes: int) -> dict[str, Any]:
    names = {str(i): f'LABEL_{i}' for i in range(classes)}
    return {'id2label': names, 'label2id': {name: int(i) for i, name in names.items()}}
