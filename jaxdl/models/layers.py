"""The layers that models are made of: thin Flax modules over `jaxdl.models.ops`.

Parameters and normalisation statistics are float32 always; `dtype` says in which precision the
arithmetic between them runs. Images are NHWC: [batch, height, width, channels].
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.models import ops

Initializer = Callable[..., jax.Array]
Padding = str | int | tuple[tuple[int, int], tuple[int, int]]

# Flax's default: variance 1 / fan_in.
lecun_normal = nn.initializers.lecun_normal()
# He et al. 2015 (arXiv:1502.01852) by fan-out, as torchvision initialises ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# What torch.nn.Linear and torch.nn.Conv2d do: uniform in ±1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

DTYPES = ('float32', 'bfloat16', 'float16')  # float16 needs config.loss_scale


# Under jit a batch is one global array and its mean is the global mean. Inside shard_map and pmap a
# program sees one shard, so layers that look across the batch need the axis to sum over. Whoever
# wraps the step knows that name, models do not: it reaches the layer while the step is traced.
_batch_axis: contextvars.ContextVar[str | None] = contextvars.ContextVar('batch_axis', default=None)


@contextlib.contextmanager
def batch_axis(name: str | None) -> Iterator[None]:
    """While traced inside, batch statistics are averaged over the mapped axis `name`.

    Enter it inside the function given to shard_map or pmap, so that it holds whenever that
    function is traced.
    """
    token = _batch_axis.set(name)
    try:
        yield
    finally:
        _batch_axis.reset(token)


def mean_over_shards(x: Any) -> Any:
    """The mean of a tree of arrays over the axis of `batch_axis`; `x` itself outside of one."""
    name = _batch_axis.get()
    return x if name is None else jax.lax.pmean(x, name)


class Dense(nn.Module):
    """x [..., in] to x · kernel + bias [..., features].

    Attributes:
        features: size of the last dimension of the result.
        use_bias: whether a bias is added.
        dtype: compute precision, float32 or bfloat16.
        kernel_init: initializer of kernel [in, features].
        bias_init: initializer of bias [features].
    """

    features: int
    use_bias: bool = True
    dtype: str = 'float32'
    kernel_init: Initializer = lecun_normal
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, *, apply: bool = True, add: bool = True) -> Any:
        """Returns y. Otherwise a pair, in the compute precision, whose second is bias or None:

        (kernel, bias) with apply=False, (x · kernel, bias) with add=False.
        """
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        kernel, bias = kernel.astype(self.dtype), None
        if self.use_bias:
            bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
            bias = bias.astype(self.dtype)
        if not apply:
            return kernel, bias
        y = ops.matmul(x.astype(self.dtype), kernel)
        if not add:
            return y, bias
        return y if bias is None else ops.add_bias(y, bias)


class Conv(nn.Module):
    """A convolution of x [batch, height, width, in] to [batch, height', width', features].

    Attributes:
        features: channels of the result.
        kernel_size: height and width of the kernel.
        strides: vertical and horizontal step.
        padding: 'SAME', 'VALID', a number of pixels on every side, or
            ((top, bottom), (left, right)).
        groups: parts of the channels that do not mix; it divides both channel counts.
        use_bias: whether a bias is added.
        dtype: compute precision, float32 or bfloat16.
        kernel_init: initializer of kernel [height, width, in / groups, features].
        bias_init: initializer of bias [features].
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = 'SAME'
    groups: int = 1
    use_bias: bool = True
    dtype: str = 'float32'
    kernel_init: Initializer = lecun_normal
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = ops.conv(x, kernel, self.strides, _explicit(self.padding), groups=self.groups)
        if self.use_bias:
            bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last dimension (arXiv:1502.03167).

    Statistics are computed and kept in float32, in the collection `batch_stats` as `mean` and
    `var`. The running variance takes the biased batch variance (divided by n, as Flax does; PyTorch
    divides by n - 1). Under jit they are those of the global batch; under shard_map and pmap see
    `batch_axis`.

    Attributes:
        momentum: share of the old running statistics that is kept at each step.
        epsilon: added to the variance.
        use_scale: whether the result is multiplied by a learned scale.
        use_bias: whether a learned bias is added.
        relu: whether max(0, ·) is applied to the result, in the same operation.
        scale_init: initializer of scale [channels].
        dtype: precision of the result, float32 or bfloat16.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    relu: bool = False
    scale_init: Initializer = nn.initializers.ones
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = (x.shape[-1],)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        scale = bias = None
        if self.use_scale:
            scale = self.param('scale', self.scale_init, channels, jnp.float32)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
        if train:
            # One pass over x: E[(x-c)²] - E[x-c]² is the variance for every c, and taking the
            # running mean for c avoids the cancellation that c = 0 suffers when |mean| >> std.
            shift = running_mean.value
            axes = tuple(range(x.ndim - 1))
            centred = x.astype(jnp.float32) - shift
            first, second = mean_over_shards((centred.mean(axes), jnp.square(centred).mean(axes)))
            mean = first + shift
            var = jnp.maximum(second - jnp.square(first), 0.0)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var
        else:
            mean, var = running_mean.value, running_var.value
        if self.relu:
            scale = jnp.ones(channels, jnp.float32) if scale is None else scale
            bias = jnp.zeros(channels, jnp.float32) if bias is None else bias
            return ops.batch_norm_relu(x, scale, bias, mean, var, self.epsilon).astype(self.dtype)
        factor = jax.lax.rsqrt(var + self.epsilon)
        y = (x.astype(jnp.float32) - mean) * (factor if scale is None else factor * scale)
        return (y if bias is None else y + bias).astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalises each example over the pixels and each group of channels (arXiv:1803.08494).

    Attributes:
        groups: the most groups; the largest number up to it that divides the channels is taken.
        epsilon: added to the variance.
        dtype: precision of the result, float32 or bfloat16.
    """

    groups: int = 16
    epsilon: float = 1e-5
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        groups = next(n for n in range(min(self.groups, channels), 0, -1) if channels % n == 0)
        x = x.astype(jnp.float32)
        # First over the pixels, which lie a whole row of channels apart, then over the channels.
        pixels = tuple(range(1, x.ndim - 1))

        def mean(values: jax.Array) -> jax.Array:
            parts = values.mean(pixels).reshape(len(x), groups, -1).mean(-1, keepdims=True)
            parts = jnp.broadcast_to(parts, (len(x), groups, channels // groups))
            return parts.reshape(len(x), *(1 for _ in pixels), channels)

        centred = x - mean(x)
        factor = jax.lax.rsqrt(mean(jnp.square(centred)) + self.epsilon) * scale
        return (centred * factor + bias).astype(self.dtype)


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and divides the others by 1 - rate.

    A rate of exactly 0.0 emits no operation and needs no key; any other rate, which may be a traced
    scalar, draws from the key stream 'dropout'.

    Attributes:
        rate: probability of a zero, in [0, 1).
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return x
        return ops.dropout(x, self.make_rng('dropout'), self.rate)


def max_pool(
    x: jax.Array,
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] | None = None,
    padding: Padding = 'VALID',
) -> jax.Array:
    """The maximum of each window of x [batch, height, width, channels]; strides default to it."""
    return ops.max_pool(x, window, strides or window, _explicit(padding))


def avg_pool(
    x: jax.Array,
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] | None = None,
    padding: Padding = 'VALID',
) -> jax.Array:
    """The mean of each window of x [batch, height, width, channels]; strides default to it."""
    return ops.avg_pool(x, window, strides or window, _explicit(padding))


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean over height and width: [batch, height, width, channels] to [batch, channels]."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)


def doubled(x: jax.Array) -> jax.Array:
    """Each pixel of x [batch, height, width, channels] as a square of 2×2 pixels."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def mark_images(x: jax.Array) -> jax.Array:
    """Names the dimensions of an activation [batch, height, width, channels] for sharding rules."""
    return with_logical_constraint(x, ('batch', 'height', 'width', 'channels'))


def _explicit(padding: Padding) -> Any:
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
