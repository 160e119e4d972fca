"""Weights to and from Hugging Face, against the transformers library itself."""

import json

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
            return [module(pixel_values=images).logits.numpy()]
        named = {'input_ids': torch.tensor(np.asarray(inputs['tokens'])).long()}
        if 'segments' in inputs:
            named['attention_mask'] = torch.tensor(np.asarray(inputs['segments'])).long()
            named['token_type_ids'] = torch.tensor(np.asarray(inputs['token_types'])).long()
        out = module(**named)
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
    kind = type(theirs(name))
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
        modern(**TEXT),
        TransformerLM(**TEXT, tied=False),
        TransformerLM(**TEXT, bias=False),
    ):
        with pytest.raises(UserError, match='cannot be exchanged'):
            interchange.layout(model)
    with pytest.raises(UserError, match=r'Object|object'):
        interchange.layout(object())


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
        steps=2, batch_size=8, ema=0.9, checkpoint=Checkpoint(every=1),
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
    assert done.returncode == 2 and 'classifier.weight [3, 32] there' in done.stderr, done.stderr
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
