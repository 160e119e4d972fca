"""ResNets: published sizes, parity with PyTorch, modes, precision, explained mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.resnet import ResNet, WideResNet
from tests.models.checks import check_vision_model, parameters

TORCHVISION = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
# He et al. 2015, table 6, rounds these to 0.27, 0.46, 0.66, 0.85 and 1.7 million.
CIFAR = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
# Zagoruyko and Komodakis 2016, tables 4 and 5, in millions.
WIDE = {(40, 1): 0.6, (40, 2): 2.2, (40, 4): 8.9, (40, 8): 35.7, (28, 10): 36.5, (22, 8): 17.2}


@pytest.mark.parametrize(('depth', 'count'), TORCHVISION.items())
def test_imagenet_sizes_are_the_published_ones(depth, count):
    model = ResNet(depth=depth, stem='imagenet', num_classes=1000)
    assert parameters(model, (224, 224, 3)) == count


@pytest.mark.parametrize(('depth', 'count'), CIFAR.items())
def test_cifar_sizes_are_the_published_ones(depth, count):
    assert parameters(ResNet(depth=depth)) == count


@pytest.mark.parametrize(('fields', 'millions'), WIDE.items())
def test_wide_sizes_are_the_published_ones(fields, millions):
    count = parameters(WideResNet(*fields))
    assert abs(count / 1e6 - millions) < 0.1
    # WRN-28-10 and WRN-40-2 are known to the last one from the authors' code.
    assert count == {(28, 10): 36_479_194, (40, 2): 2_243_546}.get(fields, count)


@pytest.mark.parametrize(
    ('model', 'shape'),
    [
        (ResNet(depth=8, width=4, zero_init=False), (16, 16, 3)),
        (ResNet(depth=8, width=4, dtype='bfloat16'), (16, 16, 1)),
        (ResNet(depth=18, width=4, num_classes=7, dropout=0.3), (16, 16, 3)),
        (ResNet(depth=50, width=4, stem='imagenet', zero_init=False), (32, 32, 3)),
        (WideResNet(depth=10, widen=1, dropout=0.2), (16, 16, 3)),
        (WideResNet(depth=16, widen=1, dtype='bfloat16'), (16, 16, 3)),
    ],
)
def test_trains_and_evaluates(model, shape):
    check_vision_model(model, shape, model.num_classes)


def test_zero_init_makes_blocks_the_identity():
    """With every block's last scale 0, dropping a block changes nothing but the later shapes."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    model = ResNet(depth=14, width=4)
    variables = model.init(jax.random.key(0), images, train=False)
    before = model.apply(variables, images, train=False)
    params = jax.tree.map(jnp.copy, variables['params'])
    block = params['stage2_block1']
    block['first_conv']['kernel'] = 5 * block['first_conv']['kernel']
    after = model.apply({**variables, 'params': params}, images, train=False)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (ResNet(depth=19), 'depth=19: must be one of 8, 14, 20, 32, 44, 56, 110, 18, 34, 50, 101'),
        (ResNet(stem='tiny'), "stem='tiny': must be one of cifar, imagenet"),
        (ResNet(width=-1), 'width=-1: must be 0'),
        (ResNet(num_classes=0), 'num_classes=0: must be at least 1'),
        (ResNet(dropout=1.0), r'dropout=1\.0: must be in \[0, 1\)'),
        (WideResNet(depth=20), r'depth=20: must be 6n \+ 4, such as 16 or 22'),
        (WideResNet(depth=3), r'depth=3: must be 6n \+ 4, such as 10 or 16'),
        (WideResNet(widen=0), 'widen=0: must be at least 1'),
    ],
)
def test_check_explains(model, words):
    with pytest.raises(ValueError, match=words):
        model.check()


# ---- parity ----


def _pair(depth, blocks, kind):
    """Our model, its randomised variables and the same network in PyTorch."""
    pytest.importorskip('torch')
    from tests.reference import torch_resnet

    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 64, 64, 3)).astype(np.float32)
    width = 64 if depth == 18 else 16
    model = ResNet(depth, width, 'imagenet', num_classes=100, zero_init=False)
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    # Statistics, scales and biases other than 0 and 1, so that each of them matters.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf * rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32)
            if path[-1].key != 'bias' and path[-1].key != 'mean'
            else rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        ),
        variables,
    )
    theirs = torch_resnet.TorchResNet(getattr(torch_resnet, kind), blocks, width, 100)
    torch_resnet.load(theirs, variables['params'], variables['batch_stats'])
    return model, variables, theirs, images


@pytest.mark.parametrize(
    ('depth', 'blocks', 'kind'),
    [(18, (2, 2, 2, 2), 'Basic'), (50, (3, 4, 6, 3), 'Bottleneck')],
)
def test_equals_pytorch(depth, blocks, kind):
    """Logits in both modes, gradients of all parameters, and the running statistics.

    PyTorch puts the unbiased batch variance (divided by n - 1) into its running variance, we and
    Flax the biased one (divided by n); both normalise by the biased one. So the change of our
    running variance is (n - 1) / n times theirs, n being batch · height · width of that layer, and
    the test corrects for that and nothing else.
    """
    model, variables, theirs, images = _pair(depth, blocks, kind)
    import torch

    channels_first = torch.tensor(images.transpose(0, 3, 1, 2))
    theirs.eval()
    with torch.no_grad():
        expected = theirs(channels_first).numpy()
    evaluated = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    np.testing.assert_allclose(evaluated, expected, atol=1e-4, rtol=1e-4)

    sizes = {}
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: sizes.update({name: inputs[0][:, 0].numel()})
            )
    theirs.train()
    output = theirs(channels_first)
    output.square().mean().backward()

    @jax.jit
    def train(params):
        def loss(params):
            logits, new = model.apply(
                {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
            )
            return jnp.square(logits).mean(), (logits, new['batch_stats'])

        return jax.grad(loss, has_aux=True)(params)

    grads, (logits, stats) = train(variables['params'])
    np.testing.assert_allclose(logits, output.detach().numpy(), atol=1e-4, rtol=1e-4)

    modules = dict(theirs.named_modules())
    old, new, grads = (
        {'.'.join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}
        for leaves in map(
            jax.tree_util.tree_leaves_with_path, (variables['batch_stats'], stats, grads)
        )
    )
    assert len(sizes) == len(new) // 2
    for name, n in sizes.items():
        module = modules[name]
        np.testing.assert_allclose(
            new[f'{name}.mean'], module.running_mean.numpy(), atol=1e-4, err_msg=name
        )
        before = old[f'{name}.var']
        change = module.running_var.numpy() - 0.9 * before
        np.testing.assert_allclose(
            new[f'{name}.var'],
            0.9 * before + change * (n - 1) / n,
            rtol=1e-4,
            atol=1e-4,
            err_msg=name,
        )
    for name, ours in grads.items():
        path, _, leaf = name.rpartition('.')
        module = modules[path]
        theirs_grad = (module.bias if leaf == 'bias' else module.weight).grad.numpy()
        if leaf == 'kernel':
            order = (2, 3, 1, 0) if theirs_grad.ndim == 4 else (1, 0)
            theirs_grad = theirs_grad.transpose(order)
        scale = np.abs(theirs_grad).max()
        np.testing.assert_allclose(ours, theirs_grad, atol=2e-3 * scale, err_msg=name)
