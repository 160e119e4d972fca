"""What holds for every vision model."""

import jax
import jax.numpy as jnp
import numpy as np


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(model, image_shape=(32, 32, 3)):
    """The shapes of all variables, without computing any of them."""
    images = jnp.zeros((1, *image_shape))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def parameters(model, image_shape=(32, 32, 3)) -> int:
    return count(shapes(model, image_shape)['params'])


def random_variables(model, image_shape, seed=0):
    """Variables drawn by numpy, all of them other than 0 and 1, which takes no compiling.

    Kernels have variance 2 / fan-in, scales and variances lie around 1, the rest around 0.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = path[-1].key, leaf.shape
        assert leaf.dtype == jnp.float32, path
        if name == 'kernel':
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif name in ('scale', 'var'):
            value = rng.uniform(0.8, 1.2, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model, image_shape))


def check_vision_model(model, image_shape, num_classes):
    """Shapes, dtypes, finite gradients, and that training and evaluation differ as they should."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, *image_shape)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, num_classes, 4))
    variables = random_variables(model, image_shape)
    state = {name: value for name, value in variables.items() if name != 'params'}

    @jax.jit
    def train(params):
        def loss(params):
            logits, new = model.apply(
                {'params': params, **state},
                images,
                train=True,
                rngs={'dropout': jax.random.key(1)},
                mutable=list(state),
            )
            one_hot = jax.nn.one_hot(labels, num_classes)
            return -(one_hot * jax.nn.log_softmax(logits)).sum(), (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (logits, new)), grads = train(variables['params'])
    evaluated = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    for output in (logits, evaluated):
        assert output.shape == (4, num_classes) and output.dtype == jnp.float32
        assert bool(jnp.isfinite(output).all())
    assert not np.allclose(logits, evaluated)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all()), path
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(new['batch_stats']):
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all()), path
    assert not np.allclose(
        *(
            np.concatenate([x.ravel() for x in jax.tree.leaves(s['batch_stats'])])
            for s in (state, new)
        )
    )
    return variables, grads
