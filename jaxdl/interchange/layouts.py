"""Which tensor of Hugging Face's BERT, GPT-2, Llama, Mistral, Qwen3 and ViT is which parameter of ours."""

import dataclasses
import reprlib
from typing import Any

import numpy as np

from jaxdl.errors import UserError
from jaxdl.models.bert import Bert, BertClassifier
from jaxdl.models.stack import Transformer
from jaxdl.models.transformer import TransformerLM
from jaxdl.models.vit import ViT

# Our activations by the names of theirs; the first of each is the one that is written.
ACTIVATIONS = {
    'gelu': ('gelu', 'gelu_python'),
    'gelu_tanh': (
        'gelu_new',
        'gelu_pytorch_tanh',
        'gelu_python_tanh',
        'gelu_fast',
        'gelu_accurate',
    ),
    'relu': ('relu',),
}

GATED = {'swiglu': ('silu', 'swish')}  # those of gated MLPs

# Fields that do not change what a model computes from its inputs: names, rates of dropout and
# initialisation (the config of the run has its own), what else is returned, how text is generated.
HARMLESS = frozenset(
    """
    _name_or_path name_or_path architectures transformers_version dtype torch_dtype
    output_attentions output_hidden_states output_past return_dict use_return_dict torchscript
    use_cache chunk_size_feed_forward gradient_checkpointing _attn_implementation_autoset
    label2id problem_type finetuning_task task_specific_params
    initializer_range initializer_factor classifier_dropout
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id prefix tokenizer_class tie_encoder_decoder
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)
# Fields that do change it, with the one value that is implemented here. It is their default too.
FIXED = {
    'is_decoder': False,
    'is_encoder_decoder': False,
    'add_cross_attention': False,
    'cross_attention_hidden_size': None,
    'pruned_heads': {},
}


@dataclasses.dataclass
class Entry:
    """One tensor there and the parameters it holds here.

    Attributes:
        there: its name in Hugging Face's layout.
        here: paths of our parameters, side by side on the last axis if several.
        kind: 'copy', 'linear' (transposed), 'patches' (OIHW there, HWIO here), 'token' (two more
            first axes there), 'places' (the class token's position and the grid of the patches', one
            below the other there), 'vocab' (rows past the vocabulary are ours only), or 'head' (that,
            and transposed).
        head: part of a head that a fine-tuned model may lack.
    """

    there: str
    here: tuple[str, ...]
    kind: str = 'copy'
    head: bool = False

    def shape_there(self, ours: list[Any], vocab: int) -> tuple[int, ...]:
        """The shape of the tensor there; `ours` are the parameters, or their shapes."""
        shape = list(ours[0].shape)
        if self.kind == 'places':
            _, (rows, columns, width) = (one.shape for one in ours)
            return (1, 1 + rows * columns, width)
        shape[-1] *= len(ours)
        if self.kind == 'linear':
            return tuple(shape[::-1])
        if self.kind == 'patches':
            return (shape[3], shape[2], shape[0], shape[1])
        if self.kind == 'vocab':
            return (vocab, *shape[1:])
        if self.kind == 'head':
            return (vocab, shape[0])
        return (1, 1, *shape) if self.kind == 'token' else tuple(shape)

    def to_here(self, value: np.ndarray, ours: list[Any]) -> list[np.ndarray]:
        """Our parameters, of the shapes of `ours`, from the tensor there."""
        if self.kind == 'places':
            return [value[0, 0], value[0, 1:].reshape(ours[1].shape)]
        if self.kind == 'linear':
            value = value.T
        elif self.kind == 'patches':
            value = value.transpose(2, 3, 1, 0)
        elif self.kind == 'token':
            value = value[0, 0]
        elif self.kind in ('vocab', 'head'):
            rows = ours[0].shape[-1 if self.kind == 'head' else 0]
            value = np.pad(value, [(0, rows - len(value))] + [(0, 0)] * (value.ndim - 1))
            value = value.T if self.kind == 'head' else value
        return [np.ascontiguousarray(part) for part in np.split(value, len(self.here), axis=-1)]

    def to_there(self, values: list[np.ndarray], vocab: int) -> np.ndarray:
        """The tensor there from our parameters."""
        if self.kind == 'places':
            values = [
                np.concatenate([values[0][None], values[1].reshape(-1, len(values[0]))])[None]
            ]
        value = values[0] if len(values) == 1 else np.concatenate(values, axis=-1)
        if self.kind == 'linear':
            value = value.T
        elif self.kind == 'patches':
            value = value.transpose(3, 2, 0, 1)
        elif self.kind == 'token':
            value = value[None, None]
        elif self.kind == 'vocab':
            value = value[:vocab]
        elif self.kind == 'head':
            value = value.T[:vocab]
        return np.ascontiguousarray(value, np.float32)


@dataclasses.dataclass
class Format:
    """How one of our models looks in Hugging Face's layout.

    Attributes:
        entries: every tensor.
        config: its config.json.
        defaults: what a field of `config` means where a config.json lacks it.
        fixed: further fields with the one value that is implemented here, which is their default.
        harmless: further fields that change nothing that a model computes.
        prefix: what all names of the body begin with; checkpoints of the bare body lack it.
        ignored: pattern of names that hold nothing of this model: buffers and heads for other tasks.
        tied: {name: name of the tensor that it repeats}.
        same: {another model_type of the same function: its defaults, where they are others}.
    """

    entries: list[Entry]
    config: dict[str, Any]
    defaults: dict[str, Any]
    fixed: dict[str, Any]
    harmless: frozenset[str]
    prefix: str
    ignored: str
    tied: dict[str, str] = dataclasses.field(default_factory=dict)
    same: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def check(self, found: dict[str, Any], *, new_head: bool = False) -> None:
        """Raises ValueError where the fields of a config.json, or their defaults, ask for another model.

        A field that is not known is refused too: whether it matters nobody here can tell. With
        `new_head` the labels may be others.
        """
        harmless = HARMLESS | self.harmless
        if new_head or 'id2label' not in self.config:
            harmless |= {'id2label', 'num_labels'}
        ours = {key: value for key, value in self.config.items() if key not in harmless}
        fixed = {**FIXED, **self.fixed}
        kind = str(found.get('model_type'))
        if kind != ours['model_type'] and kind not in self.same:
            here = ' or '.join(map(repr, (ours['model_type'], *self.same)))
            raise ValueError(f'it describes a model of type {kind!r}, here is {here}')
        found = _flat({**found, 'model_type': ours['model_type']})
        for key, value in {**self.defaults, **self.same.get(kind, {}), **found}.items():
            if key in harmless:
                continue
            if key not in ours and key not in fixed:
                raise ValueError(f'{key}={reprlib.repr(value)}: this field is not known here')
            here = ours[key] if key in ours else fixed[key]
            if not _same(key, value, here, self.config):
                if key == 'id2label' and isinstance(value, dict):
                    raise ValueError(
                        f'it has {len(value)} labels (id2label), here are {len(here)}; '
                        "--new_head keeps the config's fresh head"
                    )
                missing = '' if key in found else ' (its default, the file does not say)'
                raise ValueError(f'{key}={reprlib.repr(value)}{missing}: here it is {here!r}')


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions as the one field that files had before they were a group of fields."""
    rope = found.get('rope_parameters')
    if not isinstance(rope, dict) or set(rope) - {'rope_theta', 'rope_type'}:
        return found
    if rope.get('rope_type', 'default') != 'default':
        return found
    rest = {key: value for key, value in found.items() if key != 'rope_parameters'}
    return {**rest, 'rope_theta': rope.get('rope_theta', rest.get('rope_theta', 10000.0))}


def _same(key: str, there: Any, here: Any, config: dict[str, Any]) -> bool:
    """Whether two values of a field mean the same."""
    if key in ('hidden_act', 'activation_function'):
        kinds = (*ACTIVATIONS.values(), *GATED.values())
        return any(there in names and here in names for names in kinds)
    if there is None and key in ('head_dim', 'num_key_value_heads') and 'rope_theta' in config:
        heads = config['num_attention_heads']
        return here == (heads if key == 'num_key_value_heads' else config['hidden_size'] // heads)
    if key == 'n_inner' and there is None:
        return here == 4 * config['n_embd']
    if key == 'id2label':
        return isinstance(there, dict) and len(there) == len(here)
    if key in ('patch_size', 'image_size'):
        return _pair(there) == _pair(here)
    return type(there) in (type(here), int, float) and there == here


def _pair(size: Any) -> Any:
    return list(size) if isinstance(size, list | tuple) else [size, size]


def layout(model: Any, params: dict[str, Any] | None = None) -> Format:
    """Returns the layout of `model`; `params`, or their shapes, by path tell a ViT's size of images.

    Raises:
        UserError: Hugging Face's architecture cannot express the model.
    """
    if isinstance(model, (Bert, BertClassifier)):
        return _bert(model)
    if isinstance(model, TransformerLM):
        return _llama(model) if model.norm == 'rms' else _gpt2(model)
    if isinstance(model, ViT):
        return _vit(model, params or {})
    raise UserError(
        f'{type(model).__name__} has no layout at Hugging Face; allowed: Bert, BertClassifier, '
        'TransformerLM of the shape of GPT-2, Llama or Qwen3, ViT'
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


def _bert(model: Bert | BertClassifier) -> Format:
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
        ignored, name, labels = r'classifier\.', 'BertForPreTraining', {}
    else:
        entries += _linear('classifier', 'head', head=True)
        ignored, name = r'cls\.', 'BertForSequenceClassification'
        labels = _labels(model.num_classes)
    config = {
        'architectures': [name],
        'model_type': 'bert',
        'vocab_size': model.vocab,
        'hidden_size': model.width,
        'num_hidden_layers': model.layers,
        'num_attention_heads': model.heads,
        'intermediate_size': model.hidden,
        'hidden_act': ACTIVATIONS[model.activation][0],
        'layer_norm_eps': model.norm_epsilon,
        'max_position_embeddings': model.max_length,
        'type_vocab_size': model.token_types,
        'hidden_dropout_prob': model.dropout,
        'attention_probs_dropout_prob': 0.0,
        'initializer_range': model.init_std,
        'tie_word_embeddings': True,
        **labels,
    }
    return Format(
        entries,
        config,
        defaults={
            'vocab_size': 30522,
            'hidden_size': 768,
            'num_hidden_layers': 12,
            'num_attention_heads': 12,
            'intermediate_size': 3072,
            'hidden_act': 'gelu',
            'max_position_embeddings': 512,
            'type_vocab_size': 2,
            'layer_norm_eps': 1e-12,
            'tie_word_embeddings': True,
            'id2label': _labels(2)['id2label'],
        },
        fixed={
            'position_embedding_type': 'absolute',
            'directionality': 'bidi',
            'num_labels': len(labels.get('id2label', ())),
        },
        harmless=frozenset(
            """
            hidden_dropout_prob attention_probs_dropout_prob pooler_fc_size pooler_type
            pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
            """.split()
        ),
        prefix='bert.',
        ignored=rf'{ignored}|bert\.embeddings\.position_ids$',
        tied=tied,
    )


def _gpt2(model: TransformerLM) -> Format:
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
        'activation_function': ACTIVATIONS[model.activation][0],
        'layer_norm_epsilon': model.norm_epsilon,
        'embd_pdrop': model.dropout,
        'resid_pdrop': model.dropout,
        'attn_pdrop': 0.0,
        'initializer_range': model.init_std or 0.02,
        'tie_word_embeddings': True,
        'bos_token_id': end,
        'eos_token_id': end,
    }
    return Format(
        entries,
        config,
        defaults={
            'vocab_size': 50257,
            'n_embd': 768,
            'n_layer': 12,
            'n_head': 12,
            'n_inner': None,
            'n_positions': 1024,
            'activation_function': 'gelu_new',
            'layer_norm_epsilon': 1e-5,
            'tie_word_embeddings': True,
        },
        fixed={
            'scale_attn_weights': True,
            'scale_attn_by_inverse_layer_idx': False,
            # Other names of the fields above, and of the number of positions in early files.
            'hidden_size': model.width,
            'num_hidden_layers': model.layers,
            'num_attention_heads': model.heads,
            'max_position_embeddings': model.max_length,
            'n_ctx': model.max_length,
        },
        # reorder_and_upcast_attn changes the order of the operations and their precision alone.
        harmless=frozenset(
            """
            embd_pdrop resid_pdrop attn_pdrop summary_type summary_use_proj summary_activation
            summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn
            """.split()
        ),
        prefix='transformer.',
        ignored=r'.*\.attn\.(masked_)?bias$',
        tied={'lm_head.weight': 'transformer.wte.weight'},
    )


def _llama(model: TransformerLM) -> Format:
    """Llama (arXiv:2302.13971), or with norms of queries and keys Qwen3 (arXiv:2505.09388).

    Mistral (arXiv:2310.06825) without its window is the same function as Llama.
    """
    name = 'Qwen3' if model.qk_norm else 'Llama'
    own = {'kv_heads': model.kv_heads, 'head_dim': model.head_dim, 'qk_norm': model.qk_norm}
    shape = {'norm': 'rms', 'positions': 'rotary', 'activation': 'swiglu', 'bias': False}
    _require(model, name, pre_norm=True, softcap=0.0, **own, **shape)
    entries = [Entry('model.embed_tokens.weight', ('embed/tokens/embedding',), 'vocab')]
    for i in range(model.layers):
        there, here = f'model.layers.{i}', f'decoder/layer_{i}'
        for theirs, ours in (
            ('self_attn.q_proj', 'attention/query'),
            ('self_attn.k_proj', 'attention/key'),
            ('self_attn.v_proj', 'attention/value'),
            ('self_attn.o_proj', 'attention/out'),
            ('mlp.gate_proj', 'mlp/gate'),
            ('mlp.up_proj', 'mlp/up'),
            ('mlp.down_proj', 'mlp/down'),
        ):
            entries.append(Entry(f'{there}.{theirs}.weight', (f'{here}/{ours}/kernel',), 'linear'))
        norms = [('input_layernorm', 'attention_norm'), ('post_attention_layernorm', 'mlp_norm')]
        if model.qk_norm:
            norms.append(('self_attn.q_norm', 'attention/query_norm'))
            norms.append(('self_attn.k_norm', 'attention/key_norm'))
        for theirs, ours in norms:
            entries.append(Entry(f'{there}.{theirs}.weight', (f'{here}/{ours}/scale',)))
    entries.append(Entry('model.norm.weight', ('decoder/final_norm/scale',)))
    tied = {'lm_head.weight': 'model.embed_tokens.weight'}
    if not model.tied:
        entries.append(Entry('lm_head.weight', ('head/kernel',), 'head', head=True))
        tied = {}
    config = {
        'architectures': [f'{name}ForCausalLM'],
        'model_type': name.lower(),
        'vocab_size': model.vocab,
        'hidden_size': model.width,
        'intermediate_size': model.hidden,
        'num_hidden_layers': model.layers,
        'num_attention_heads': model.heads,
        'num_key_value_heads': model.key_heads,
        'head_dim': model.channels,
        'hidden_act': GATED['swiglu'][0],
        'max_position_embeddings': model.max_length,
        'rms_norm_eps': model.norm_epsilon,
        'rope_theta': model.rotary_base,
        'attention_bias': False,
        'attention_dropout': 0.0,
        'initializer_range': model.init_std or 0.02,
        'tie_word_embeddings': model.tied,
        'bos_token_id': None,
        'eos_token_id': None,
    }
    defaults = {
        'vocab_size': 32000,
        'hidden_size': 4096,
        'intermediate_size': 11008,
        'num_hidden_layers': 32,
        'num_attention_heads': 32,
        'num_key_value_heads': None,
        'head_dim': None,
        'hidden_act': 'silu',
        'rms_norm_eps': 1e-6,
        'rope_theta': 10000.0,
        'tie_word_embeddings': False,
    }
    if model.qk_norm:
        defaults |= {'vocab_size': 151936, 'intermediate_size': 22016}
        defaults |= {'num_key_value_heads': 32, 'head_dim': 128}
    mistral = {'intermediate_size': 14336, 'num_key_value_heads': 8, 'sliding_window': 4096}
    return Format(
        entries,
        config,
        defaults,
        fixed={
            'mlp_bias': False,
            'pretraining_tp': 1,
            'rope_scaling': None,
            'sliding_window': None,
            'use_sliding_window': False,
            'layer_types': ['full_attention'] * model.layers,
        },
        # Rotary positions have no end; the windows of Qwen3 are refused by the fields above.
        harmless=frozenset(('max_position_embeddings', 'max_window_layers', 'attention_dropout')),
        prefix='model.',
        ignored=r'.*rotary_emb\.inv_freq$',
        tied=tied,
        same={} if model.qk_norm else {'mistral': mistral},
    )


def _vit(model: ViT, params: dict[str, Any]) -> Format:
    _require(model, 'ViT', pre_norm=True, pooling='class')
    entries = [
        Entry('vit.embeddings.cls_token', ('class_token',), 'token'),
        Entry('vit.embeddings.position_embeddings', ('class_position', 'positions'), 'places'),
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
        'hidden_act': ACTIVATIONS[model.activation][0],
        'layer_norm_eps': model.norm_epsilon,
        'patch_size': model.patch,
        'hidden_dropout_prob': model.dropout,
        'attention_probs_dropout_prob': 0.0,
        'initializer_range': model.init_std,
        'qkv_bias': True,
        **_labels(model.num_classes),
    }
    if params:
        rows, columns, _ = params['positions'].shape
        size = [rows * model.patch, columns * model.patch]
        config['image_size'] = size[0] if rows == columns else size
        config['num_channels'] = params['patches/kernel'].shape[2]
    return Format(
        entries,
        config,
        defaults={
            'hidden_size': 768,
            'num_hidden_layers': 12,
            'num_attention_heads': 12,
            'intermediate_size': 3072,
            'hidden_act': 'gelu',
            'layer_norm_eps': 1e-12,
            'patch_size': 16,
            'qkv_bias': True,
            'image_size': 224,
            'num_channels': 3,
            'id2label': _labels(2)['id2label'],
        },
        fixed={'head_dim': model.channels, 'num_labels': model.num_classes},
        # Of parts that are not taken over, the pooler and the decoder of masked images.
        harmless=frozenset(
            """
            hidden_dropout_prob attention_probs_dropout_prob encoder_stride pooler_output_size
            pooler_act tie_word_embeddings
            """.split()
        ),
        prefix='vit.',
        ignored=r'vit\.pooler\.',
    )


def _labels(classes: int) -> dict[str, Any]:
    names = {str(i): f'LABEL_{i}' for i in range(classes)}
    return {'id2label': names, 'label2id': {name: int(i) for i, name in names.items()}}
