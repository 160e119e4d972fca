"""Weights to and from Hugging Face, against the transformers library itself."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import Sgd
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bpe
from jaxdl.errors import UserError
from jaxdl.interchange import weights as interchange
from jaxdl.models.bert import Bert, BertClassifier
from jaxdl.models.stack import stack_layers
from jaxdl.models.transformer import TransformerLM, modern
from jaxdl.models.vit import ViT
from jaxdl.tasks.language_model import LanguageModel

SHAPE = dict(width=32, layers=2, heads=4, mlp_width=48, dropout=0.0)
TEXT = dict(**SHAPE, vocab=60, max_length=16)
MODELS = {
    'bert': Bert(**TEXT),
    'bert_padded': Bert(**TEXT, vocab_multiple=64, scan_layers=True),
    'classifier': BertClassifier(**TEXT, num_classes=3),
    'gpt2': TransformerLM(**TEXT),
    'gpt2_scanned': TransformerLM(**TEXT, vocab_multiple=64, scan_layers=True, head_chunks=2),
    'llama': modern(**TEXT, kv_heads=2, qk_norm=False, norm_epsilon=1e-6),
    'llama_padded': modern(
        **TEXT, qk_norm=False, norm_epsilon=1e-6, vocab_multiple=64, scan_layers=True
    ),
    'mistral': modern(**TEXT, kv_heads=2, qk_norm=False, norm_epsilon=1e-6, rotary_base=5e5),
    'qwen3': modern(**TEXT, kv_heads=2, head_dim=16, norm_epsilon=1e-6, tied=True),
    'vit': ViT(**SHAPE, num_classes=7, patch=4, norm_epsilon=1e-12),
    'vit_scanned': ViT(**SHAPE, num_classes=7, patch=4, scan_layers=True),
}


def theirs(name, seed=0):
    """The same architecture in transformers, with random weights, biases and norms too."""
    transformers = pytest.importorskip('transformers')
    torch = pytest.importorskip('torch')
    torch.manual_seed(seed)
    model = MODELS[name]
    common = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    if isinstance(model, Bert | BertClassifier):
        config = transformers.BertConfig(
            **common, vocab_size=60, max_position_embeddings=16, num_labels=3
        )
        kind = (
            transformers.BertForPreTraining
            if isinstance(model, Bert)
            else transformers.BertForSequenceClassification
        )
    elif isinstance(model, TransformerLM) and model.norm == 'rms':
        kinds = {'llama': 'Llama', 'llama_padded': 'Llama', 'mistral': 'Mistral', 'qwen3': 'Qwen3'}
        more = {'sliding_window': None} if name == 'mistral' else {}
        config = getattr(transformers, f'{kinds[name]}Config')(
            **common,
            **more,
            vocab_size=60,
            num_key_value_heads=model.key_heads,
            head_dim=model.channels,
            rope_parameters={'rope_theta': model.rotary_base, 'rope_type': 'default'},
            tie_word_embeddings=model.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
        kind = getattr(transformers, f'{kinds[name]}ForCausalLM')
    elif isinstance(model, TransformerLM):
        config = transformers.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=48,
            vocab_size=60,
            n_positions=16,
            bos_token_id=None,
            eos_token_id=None,
        )
        kind = transformers.GPT2LMHeadModel
    else:
        config = transformers.ViTConfig(
            **common,
            image_size=8,
            patch_size=4,
            num_labels=7,
            layer_norm_eps=model.norm_epsilon,
        )
        kind = transformers.ViTForImageClassification
    module = kind(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def ours(name):
    """(inputs, fresh parameters) of our model."""
    model = MODELS[name]
    if isinstance(model, ViT):
        inputs = {'images': jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}
    else:
        inputs = {'tokens': jax.random.randint(jax.random.key(0), (2, 10), 0, 60)}
        if not isinstance(model, TransformerLM):
            # The second row is padded; half of the first is a second sentence.
            inputs['segments'] = jnp.array([[1] * 10, [1] * 7 + [0] * 3])
            inputs['token_types'] = jnp.array([[0] * 5 + [1] * 5] * 2)
    params = jax.jit(lambda: model.init(jax.random.key(3), **inputs, train=False))()['params']
    return inputs, params


def outputs(name, params, inputs):
    """Our outputs as a list of arrays, those of tokens that count."""
    out = MODELS[name].apply({'params': params}, **inputs, train=False)
    logits = out.logits() if hasattr(out, 'logits') else out
    found = [np.asarray(logits)]
    if isinstance(MODELS[name], Bert):
        found[0] = np.where(np.asarray(inputs['segments'])[..., None] > 0, found[0], 0)
        found.append(np.asarray(out.next_sentence))
    return found


def torch_outputs(name, module, inputs):
    import torch

    with torch.no_grad():
        if isinstance(MODELS[name], ViT):
            images = torch.tensor(np.asarray(inputs['images']).transpose(0, 3, 1, 2).copy())
            return [module(pixel_values=images, return_dict=True).logits.numpy()]
        named = {'input_ids': torch.tensor(np.asarray(inputs['tokens'])).long()}
        if 'segments' in inputs:
            named['attention_mask'] = torch.tensor(np.asarray(inputs['segments'])).long()
            named['token_type_ids'] = torch.tensor(np.asarray(inputs['token_types'])).long()
        out = module(**named, return_dict=True)
    if isinstance(MODELS[name], Bert):
        logits = out.prediction_logits.numpy()
        logits = np.where(np.asarray(inputs['segments'])[..., None] > 0, logits, 0)
        return [logits, out.seq_relationship_logits.numpy()]
    return [out.logits.numpy()]


def compare(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize('name', MODELS)
def test_their_weights_give_their_outputs_here(name, tmp_path):
    module = theirs(name)
    module.save_pretrained(tmp_path)
    inputs, params = ours(name)
    loaded = interchange.load(tmp_path, MODELS[name], params)
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, params)
    compare(outputs(name, loaded, inputs), torch_outputs(name, module, inputs))


@pytest.mark.parametrize('name', MODELS)
def test_our_weights_give_our_outputs_there(name, tmp_path):
    inputs, params = ours(name)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    interchange.save(tmp_path, params, MODELS[name])
    kind = type(theirs('llama' if name == 'mistral' else name))  # written as the same function
    module, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    compare(outputs(name, params, inputs), torch_outputs(name, module.eval(), inputs))
    if not MODELS[name].__dict__.get('vocab_multiple', 1) > 1:
        again = interchange.load(tmp_path, MODELS[name], params)
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_bare_bodies_and_early_names():
    model, (_, params) = MODELS['gpt2'], ours('gpt2')
    tensors, _ = interchange.to_hf(params, model)
    bare = {name.removeprefix('transformer.'): value for name, value in tensors.items()}
    bare |= {'h.0.attn.bias': np.ones((1, 1, 16, 16), np.float32)}
    again = interchange.from_hf(bare, model, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)

    model, (_, params) = MODELS['bert'], ours('bert')
    tensors, _ = interchange.to_hf(params, model)
    early = {
        name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
            'LayerNorm.bias', 'LayerNorm.beta'
        ): value
        for name, value in tensors.items()
    }
    early['cls.predictions.decoder.weight'] = tensors['bert.embeddings.word_embeddings.weight']
    again = interchange.from_hf(early, model, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_half_precision_files(tmp_path):
    from safetensors.numpy import save_file

    model, (_, params) = MODELS['gpt2'], ours('gpt2')
    tensors, _ = interchange.to_hf(params, model)
    half = {name: np.asarray(jnp.asarray(x, jnp.bfloat16)) for name, x in tensors.items()}
    save_file(half, tmp_path / 'half.safetensors')
    loaded = interchange.load(tmp_path / 'half.safetensors', model, params)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0.01, atol=1e-6)


def test_files_in_parts(tmp_path):
    module = theirs('gpt2')
    module.save_pretrained(tmp_path, max_shard_size='20KB')
    assert (tmp_path / 'model.safetensors.index.json').is_file()
    _, params = ours('gpt2')
    loaded = interchange.load(tmp_path, MODELS['gpt2'], params)
    np.testing.assert_array_equal(
        loaded['embed']['places']['embedding'], module.transformer.wpe.weight.detach()
    )


def test_a_new_head_for_a_pretrained_body():
    _, pretrained = ours('bert')
    tensors, _ = interchange.to_hf(pretrained, MODELS['bert'])
    model, (_, params) = MODELS['classifier'], ours('classifier')
    with pytest.raises(UserError, match=r'classifier\.weight'):
        interchange.from_hf(tensors, model, params)
    loaded = interchange.from_hf(tensors, model, params, new_head=True)
    jax.tree.map(np.testing.assert_array_equal, loaded['head'], params['head'])
    jax.tree.map(np.testing.assert_array_equal, loaded['bert'], pretrained['bert'])

    _, images = ours('vit')
    tensors, _ = interchange.to_hf(images, MODELS['vit'])
    model = MODELS['vit'].clone(num_classes=4)
    fresh = {**images, 'head': {'kernel': np.ones((32, 4)), 'bias': np.zeros(4)}}
    loaded = interchange.from_hf(tensors, model, fresh, new_head=True)
    np.testing.assert_array_equal(loaded['head']['kernel'], np.ones((32, 4)))


def test_what_does_not_fit_is_listed():
    model, (_, params) = MODELS['gpt2'], ours('gpt2')
    tensors, _ = interchange.to_hf(params, model)
    del tensors['transformer.h.1.ln_1.weight']
    tensors['transformer.h.2.ln_1.weight'] = np.ones(32)
    tensors['transformer.wte.weight'] = np.ones((61, 32))
    with pytest.raises(UserError) as error:
        interchange.from_hf(tensors, model, params)
    text = str(error.value)
    assert '1 missing, 1 unexpected, 1 different' in text
    assert 'transformer.h.1.ln_1.weight [32]' in text
    assert 'transformer.h.2.ln_1.weight [32]' in text
    assert 'transformer.wte.weight [61, 32] there, [60, 32] here' in text
    assert len(text.splitlines()) == 4


def test_an_untied_head_is_refused():
    model, (_, params) = MODELS['gpt2'], ours('gpt2')
    tensors, _ = interchange.to_hf(params, model)
    tensors['lm_head.weight'] = tensors['transformer.wte.weight'] + 1
    with pytest.raises(UserError, match=r'lm_head\.weight differs'):
        interchange.from_hf(tensors, model, params)


def test_models_that_cannot_be_exchanged():
    for model in (
        modern(**TEXT, bias=True),
        modern(**TEXT, softcap=5.0),
        TransformerLM(**TEXT, tied=False),
        TransformerLM(**TEXT, bias=False),
    ):
        with pytest.raises(UserError, match='cannot be exchanged'):
            interchange.layout(model)
    with pytest.raises(UserError, match=r'Object|object'):
        interchange.layout(object())


# Another valid value where the rule of `another` gives none.
OTHER = {
    'hidden_act': 'quick_gelu',
    'activation_function': 'quick_gelu',
    'architectures': ['Other'],
    'dtype': 'bfloat16',
    'problem_type': 'regression',
    'summary_type': 'first',
    'summary_activation': 'tanh',
    'pooler_act': 'relu',
    'pooler_output_size': 16,
    'hidden_size': 64,
    'n_embd': 64,
    'num_attention_heads': 2,
    'n_head': 2,
    'n_inner': 64,
    'chunk_size_feed_forward': 5,
    'classifier_dropout': 0.3,
    'transformers_version': '4.0.0',
    'id2label': {'0': 'a', '1': 'b', '2': 'c', '3': 'd', '4': 'e', '5': 'f', '6': 'g'},
    'label2id': {'a': 0},
    'rope_parameters': {'rope_theta': 50.0, 'rope_type': 'default'},
    'layer_types': ['full_attention', 'sliding_attention'],
    'sliding_window': 3,
    'num_key_value_heads': 4,
    'head_dim': 4,
}
FORMATS = {
    'bert': 'BertConfig',
    'classifier': 'BertConfig',
    'gpt2': 'GPT2Config',
    'llama': 'LlamaConfig',
    'mistral': 'MistralConfig',
    'qwen3': 'Qwen3Config',
    'vit': 'ViTConfig',
}


def another(field, value):
    if field in OTHER:
        return OTHER[field]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value + 1 if isinstance(value, int) else value / 2 + 0.1
    return 1 if field.endswith('token_id') else None


def cases():
    transformers = pytest.importorskip('transformers')
    for name, kind in FORMATS.items():
        for field in dataclasses.fields(getattr(transformers, kind)):
            if field.name not in OTHER and another(field.name, field.default) is None:
                raise AssertionError(f'give another value of {kind}.{field.name}')
            yield from ((name, field.name, change) for change in ('changed', 'absent'))
        yield from ((name, 'model_type', change) for change in ('changed', 'absent'))


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    """{name: (a folder with random weights, our parameters of it, its outputs)}, made when asked for."""
    made = {}

    def base(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            module = theirs(name)
            module.save_pretrained(folder)
            inputs, params = ours(name)
            params = interchange.load(folder, MODELS[name], params)
            made[name] = folder, type(module), params, inputs, torch_outputs(name, module, inputs)
        return made[name]

    return base


@pytest.mark.parametrize(('name', 'field', 'change'), cases())
def test_a_field_is_refused_or_changes_no_output(name, field, change, bases, tmp_path):
    """Whatever a config.json says, or leaves to the defaults of the format."""
    folder, kind, params, inputs, want = bases(name)
    config = json.loads((folder / 'config.json').read_text())
    before = config.pop(field, None)
    if change == 'changed':
        usual = getattr(kind.config_class(), field, before)
        config[field] = another(field, before if isinstance(before, bool) else usual)
        assert config[field] != before
    (tmp_path / 'config.json').write_text(json.dumps(config))
    os.link(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    try:
        loaded = interchange.load(tmp_path, MODELS[name], params)
    except UserError as error:
        inner = {'model_type': 'type', 'rope_parameters': 'rope_theta'}.get(field, field)
        assert inner in str(error), error
        return
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    module = kind.from_pretrained(tmp_path, dtype='float32', return_dict=True).eval()
    compare(torch_outputs(name, module, inputs), want)


REFUSED = [
    ('bert', {'is_decoder': True}),
    ('bert', {'hidden_act': 'relu'}),
    ('bert', {'layer_norm_eps': 1e-6}),
    ('bert', {'position_embedding_type': 'relative_key'}),
    ('bert', {'directionality': 'left'}),
    ('bert', {'pruned_heads': {'0': [1]}}),
    ('bert', {'tie_word_embeddings': False}),
    ('classifier', {'add_cross_attention': True}),
    ('classifier', {'model_type': 'roberta'}),
    ('gpt2', {'scale_attn_weights': False}),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}),
    ('gpt2', {'scale_attn_weights': None}),
    ('gpt2', {'n_head': 2}),
    ('gpt2', {'n_inner': None}),
    ('gpt2', {'rope_scaling': None}),
    ('gpt2', {'a_field_of_tomorrow': 'x' * 5000}),
    ('vit', {'qkv_bias': False}),
    ('vit', {'image_size': [4, 16]}),
    ('vit', {'patch_size': [2, 4]}),
    ('vit', {'head_dim': 16}),
    ('vit', {'num_channels': 1}),
    ('vit', {'num_labels': 3}),
    ('classifier', {'id2label': {'0': 'a'}}),
]


@pytest.mark.parametrize(('name', 'change'), REFUSED)
@pytest.mark.parametrize('given', ['folder', 'file'])
def test_weights_of_another_model_are_refused_by_the_field(name, change, given, bases, tmp_path):
    folder, _, params, *_ = bases(name)
    config = json.loads((folder / 'config.json').read_text()) | change
    (tmp_path / 'config.json').write_text(json.dumps(config))
    os.link(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    source = tmp_path if given == 'folder' else tmp_path / 'model.safetensors'
    ((field, value),) = change.items()
    with pytest.raises(UserError) as error:
        interchange.load(source, MODELS[name], params)
    text = str(error.value)
    shown = repr(value)[:10] if field != 'id2label' else f'{len(value)} labels'
    assert (field in text and shown in text) or field == 'model_type'
    assert len(text) < 500 and '\n' not in text


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('bert', {'hidden_act': 'gelu_python', 'position_embedding_type': 'absolute'}),
        ('bert', {'gradient_checkpointing': False, 'pooler_type': 'first_token_transform'}),
        ('gpt2', {'activation_function': 'gelu_pytorch_tanh', 'n_ctx': 16, 'max_length': 50}),
        ('vit', {'image_size': [8, 8], 'patch_size': (4, 4), 'torch_dtype': 'float32'}),
    ],
)
def test_other_words_for_the_same_model_are_taken(name, change, bases, tmp_path):
    folder, _, params, *_ = bases(name)
    config = json.loads((folder / 'config.json').read_text()) | change
    (tmp_path / 'config.json').write_text(json.dumps(config))
    os.link(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    loaded = interchange.load(tmp_path, MODELS[name], params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_file_without_a_config_is_taken_with_a_warning(bases, tmp_path, capsys):
    folder, _, params, *_ = bases('gpt2')
    os.link(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    interchange.load(tmp_path / 'model.safetensors', MODELS['gpt2'], params)
    assert 'not checked' in capsys.readouterr().err


@pytest.mark.parametrize('text', [b'{', b'[]', b'[' * 100_000, b'\xff'])
def test_a_config_that_is_none(text, bases, tmp_path):
    folder, _, params, *_ = bases('gpt2')
    os.link(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_bytes(text)
    with pytest.raises(UserError, match=r'config\.json'):
        interchange.load(tmp_path, MODELS['gpt2'], params)
    (tmp_path / 'config.json').unlink()
    (tmp_path / 'model.safetensors.index.json').write_bytes(text)
    with pytest.raises(UserError, match='index'):
        interchange.load(tmp_path, MODELS['gpt2'], params)
    (tmp_path / 'model.safetensors.index.json').write_text('{"weight_map": {"a": "../b"}}')
    with pytest.raises(UserError, match=r'\.\./b'):
        interchange.load(tmp_path, MODELS['gpt2'], params)


def test_a_vit_of_wide_images_goes_there_and_back(tmp_path):
    """As many patches as a square has, in another grid."""
    import torch
    import transformers

    model = MODELS['vit']
    images = jax.random.normal(jax.random.key(0), (2, 4, 16, 3))
    params = jax.jit(lambda: model.init(jax.random.key(3), images, train=False))()['params']
    params['head']['kernel'] = jax.random.normal(jax.random.key(4), (32, 7))
    interchange.save(tmp_path, params, model)
    assert json.loads((tmp_path / 'config.json').read_text())['image_size'] == [4, 16]
    module = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        there = module(torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())).logits
    here = model.apply({'params': params}, images, train=False)
    compare([np.asarray(here)], [there.numpy()])
    jax.tree.map(np.testing.assert_array_equal, interchange.load(tmp_path, model, params), params)
    with pytest.raises(UserError, match=r'image_size=\[4, 16\]'):
        interchange.load(tmp_path, model, ours('vit')[1])


def test_a_contradicting_config(tmp_path):
    _, params = ours('gpt2')
    interchange.save(tmp_path, params, MODELS['gpt2'])
    with pytest.raises(UserError, match='n_head'):
        interchange.load(tmp_path, MODELS['gpt2'].clone(heads=2), params)
    with pytest.raises(UserError, match="'gpt2'"):
        interchange.load(tmp_path, MODELS['bert'], ours('bert')[1])


def test_broken_files(tmp_path):
    _, params = ours('gpt2')
    with pytest.raises(UserError, match='no such file'):
        interchange.load(tmp_path / 'nothing', MODELS['gpt2'], params)
    (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
    with pytest.raises(UserError, match='pickle'):
        interchange.load(tmp_path, MODELS['gpt2'], params)
    (tmp_path / 'model.safetensors').write_bytes(b'rubbish')
    with pytest.raises(UserError, match='no readable safetensors'):
        interchange.load(tmp_path, MODELS['gpt2'], params)


CONFIG = """
from jaxdl.core.config import Checkpoint, Config
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.vit import ViT
from jaxdl.core.optim import Constant, Sgd
from jaxdl.tasks.classification import Classification

def get_config(variant=''):
    return Config(
        model=ViT(width=32, layers=2, heads=4, num_classes=10, patch=4, scan_layers=True),
        task=Classification(),
        data=Tfds('digits'),
        optimizer=Sgd(learning_rate=0.05, schedule=Constant()),
        steps=2, batch_size=8, ema=0.1, checkpoint=Checkpoint(every=1),
    )
"""


@pytest.mark.slow
def test_command_line_both_ways(tmp_path):
    import subprocess
    import sys

    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
        layer_norm_eps=1e-6,
    )
    module = transformers.ViTForImageClassification(config)
    module.save_pretrained(tmp_path / 'there')
    (tmp_path / 'config.py').write_text(CONFIG)

    def call(*words):
        command = [sys.executable, '-m', 'jaxdl', 'interchange', *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    make = [f'--config={tmp_path}/config.py', f'--workdir={tmp_path}/run']
    done = call(f'--from_hf={tmp_path}/there', *make)
    assert done.returncode == 2 and 'it has 3 labels (id2label), here are 10' in done.stderr
    assert '--new_head' in done.stderr
    done = call(f'--from_hf={tmp_path}/there', *make, '--new_head')
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['steps'] == 2
    done = call(f'--workdir={tmp_path}/run', f'--to_hf={tmp_path}/back')
    assert done.returncode == 0, done.stderr
    again = interchange.read_tensors(tmp_path / 'back')
    there = interchange.read_tensors(tmp_path / 'there')
    assert set(again) == set(there)
    for name in there:
        if not name.startswith('classifier'):
            np.testing.assert_array_equal(again[name], there[name])
    done = call(f'--from_hf={tmp_path}/there', *make)
    assert done.returncode == 2 and 'holds a run' in done.stderr
    done = call(f'--workdir={tmp_path}/run')
    assert done.returncode == 2 and '--to_hf' in done.stderr


def test_scanned_layout_is_the_stacked_one():
    _, params = ours('gpt2')
    tensors, _ = interchange.to_hf(params, MODELS['gpt2'])
    scanned = MODELS['gpt2'].clone(scan_layers=True)
    loaded = interchange.from_hf(tensors, scanned, stack_layers(params))
    jax.tree.map(np.testing.assert_array_equal, loaded, stack_layers(params))


def test_a_run_of_imported_weights_has_its_tokenizer_and_needs_no_text(tmp_path):
    """What is made from weights can be exported, and sampled, where the training text is gone."""
    text = tmp_path / 'text.txt'
    text.write_text('the quick brown fox jumps over the lazy dog\n' * 50)
    vocab = 270
    model = TransformerLM(**{**TEXT, 'vocab': vocab})
    params = model.init(jax.random.key(0), jnp.zeros((1, 16), jnp.int32), train=False)['params']
    interchange.save(tmp_path / 'there', params, model)
    config = Config(
        model=model,
        task=LanguageModel(),
        data=Documents(
            source=TextFiles(str(text), documents='paragraph'),
            tokenizer=Bpe(vocab_size=vocab),
            length=16,
            cache=str(tmp_path / 'cache'),
        ),
        optimizer=Sgd(),
        steps=2,
        batch_size=8,
        checkpoint=Checkpoint(every=1),
    )
    run = str(tmp_path / 'run')
    interchange.import_run(config, run, str(tmp_path / 'there'), new_head=False)
    assert (tmp_path / 'run' / 'tokenizer.json').exists()
    text.unlink()
    assert interchange.export_run(run, str(tmp_path / 'back')) == 0
    there, back = (interchange.read_tensors(tmp_path / name) for name in ('there', 'back'))
    assert set(there) == set(back)
    for name in there:
        np.testing.assert_array_equal(there[name], back[name])
