"""Residual networks: ResNet for CIFAR and ImageNet, and Wide ResNet."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Model
from jaxdl.errors import at_least, below_one, one_of
from jaxdl.models import layers

# The two families of He et al. (arXiv:1512.03385): section 4.2's three stages, whose depth is
# 6n + 2, and table 1's four stages of basic or bottleneck blocks.
CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STEMS = ('cifar', 'imagenet')


class ResNet(Model, nn.Module):
    """A residual network (arXiv:1512.03385) whose family follows from its depth.

    Depths 8, 14, 20, 32, 44, 56 and 110 have three stages of basic blocks from width 16 on and
    shortcuts without parameters; 18 and 34 have four stages of basic blocks, 50, 101 and 152 of
    bottleneck blocks, from width 64 on, with the stride in the 3×3 convolution. Takes images
    [batch, height, width, channels] and returns float32 logits [batch, num_classes].

    Attributes:
        depth: layers with weights: 8, 14, 20, 32, 44, 56, 110, 18, 34, 50, 101 or 152.
        width: channels of the first stage; 0 is the published number, 16 or 64.
        stem: 'cifar' is a 3×3 convolution; 'imagenet' is a 7×7 one with stride 2 and a 3×3
            max-pooling with stride 2.
        num_classes: number of classes.
        zero_init: whether each block's last scale starts at 0, so that the block starts as the
            identity (arXiv:1706.02677).
        dropout: probability of dropping a feature before the last layer.
        momentum: share of the old BatchNorm statistics that is kept at each step.
        dtype: compute precision, float32 or bfloat16.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    matrices: ClassVar[tuple] = ((r'^stage\d+_block\d+/\w+_conv/kernel$', 0),)

    depth: int = 20
    width: int = 0
    stem: str = 'cifar'
    num_classes: int = 10
    zero_init: bool = True
    dropout: float = 0.0
    momentum: float = 0.9
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        one_of(self, depth=(*CIFAR_DEPTHS, *IMAGENET_BLOCKS), stem=STEMS, dtype=layers.DTYPES)
        at_least(self, width=0, num_classes=1)
        below_one(self, 'dropout', 'momentum')

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        self.check()
        four_stages = self.depth in IMAGENET_BLOCKS
        blocks = IMAGENET_BLOCKS[self.depth] if four_stages else ((self.depth - 2) // 6,) * 3
        width = self.width or (64 if four_stages else 16)
        expansion = 4 if self.depth >= 50 and four_stages else 1

        imagenet = self.stem == 'imagenet'
        x = layers.Conv(
            width,
            (7, 7) if imagenet else (3, 3),
            (2, 2) if imagenet else (1, 1),
            3 if imagenet else 1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.he_normal_fan_out,
            name='stem_conv',
        )(images)
        norm = layers.BatchNorm(
            momentum=self.momentum, relu=True, dtype=self.dtype, name='stem_norm'
        )
        x = norm(x, train=train)
        if imagenet:
            x = layers.max_pool(x, (3, 3), (2, 2), 1)
        for stage, count in enumerate(blocks):
            for index in range(count):
                block = Block(
                    width * 2**stage,
                    stride=2 if stage and not index else 1,
                    expansion=expansion,
                    project=four_stages,
                    zero_init=self.zero_init,
                    momentum=self.momentum,
                    dtype=self.dtype,
                    name=f'stage{stage}_block{index}',
                )
                x = block(x, train=train)
        x = layers.global_avg_pool(x)
        x = layers.Dropout(self.dropout, name='dropout')(x, train=train)
        classifier = layers.Dense(
            self.num_classes,
            dtype=self.dtype,
            kernel_init=layers.torch_uniform,
            name='classifier',
        )
        return classifier(x).astype(jnp.float32)


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1 where `expansion` exceeds 1.

    Attributes:
        width: channels of the 3×3 convolutions; the result has width · expansion.
        stride: of the first 3×3 convolution.
        expansion: how many times wider a bottleneck's result is than its inside; 1: no bottleneck.
        project: where the shape changes, the shortcut is a 1×1 convolution with BatchNorm (the
            paper's option B) rather than every stride-th pixel and channels of zeros (option A).
        zero_init: whether the last scale starts at 0.
        momentum: share of the old BatchNorm statistics that is kept at each step.
        dtype: compute precision, float32 or bfloat16.
    """

    width: int
    stride: int = 1
    expansion: int = 1
    project: bool = True
    zero_init: bool = True
    momentum: float = 0.9
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv_norm(x, features, size, stride, name, relu=True, scale=nn.initializers.ones):
            conv = layers.Conv(
                features,
                (size, size),
                (stride, stride),
                size // 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=layers.he_normal_fan_out,
                name=f'{name}_conv',
            )
            norm = layers.BatchNorm(
                momentum=self.momentum,
                relu=relu,
                scale_init=scale,
                dtype=self.dtype,
                name=f'{name}_norm',
            )
            return norm(conv(x), train=train)

        last = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        out = self.width * self.expansion
        if self.expansion > 1:
            y = conv_norm(x, self.width, 1, 1, 'first')
            y = conv_norm(y, self.width, 3, self.stride, 'second')
            y = conv_norm(y, out, 1, 1, 'third', relu=False, scale=last)
        else:
            y = conv_norm(x, self.width, 3, self.stride, 'first')
            y = conv_norm(y, out, 3, 1, 'second', relu=False, scale=last)
        if x.shape[-1] == out and self.stride == 1:
            shortcut = x
        elif self.project:
            shortcut = conv_norm(x, out, 1, self.stride, 'shortcut', relu=False)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
            shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((0, out - x.shape[-1]),))
        return layers.mark_images(nn.relu(y + shortcut))


class WideResNet(Model, nn.Module):
    """A wide residual network, WRN-depth-widen (arXiv:1605.07146), for images of 28 to 64 pixels.

    Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `widen` channels; BatchNorm and
    ReLU come before each convolution. Takes images [batch, height, width, channels] and returns
    float32 logits [batch, num_classes].

    Attributes:
        depth: layers with weights, 6n + 4: 10, 16, 22, 28, 34, 40, …
        widen: how many times wider than the thin network.
        num_classes: number of classes.
        dropout: probability of dropping a feature between the two convolutions of a block.
        momentum: share of the old BatchNorm statistics that is kept at each step.
        dtype: compute precision, float32 or bfloat16.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    matrices: ClassVar[tuple] = ((r'^stage\d+_block\d+_\w+_conv/kernel$', 0),)

    depth: int = 16
    widen: int = 4
    num_classes: int = 10
    dropout: float = 0.0
    momentum: float = 0.9
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        if self.depth < 10 or (self.depth - 4) % 6:
            below = max(10, self.depth - (self.depth - 4) % 6)
            raise ValueError(f'depth={self.depth}: must be 6n + 4, such as {below} or {below + 6}')
        at_least(self, widen=1, num_classes=1)
        one_of(self, dtype=layers.DTYPES)
        below_one(self, 'dropout', 'momentum')

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        self.check()

        def conv(x, features, size, stride, name):
            return layers.Conv(
                features,
                (size, size),
                (stride, stride),
                size // 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=layers.he_normal_fan_out,
                name=name,
            )(x)

        def norm_relu(x, name):
            norm = layers.BatchNorm(momentum=self.momentum, relu=True, dtype=self.dtype, name=name)
            return norm(x, train=train)

        x = conv(images, 16, 3, 1, 'stem_conv')
        for stage in range(3):
            features = 16 * self.widen * 2**stage
            for index in range((self.depth - 4) // 6):
                name = f'stage{stage}_block{index}'
                stride = 2 if stage and not index else 1
                y = norm_relu(x, f'{name}_first_norm')
                if x.shape[-1] != features or stride > 1:
                    # The shortcut of a block that changes the shape starts after the activation.
                    x = conv(y, features, 1, stride, f'{name}_shortcut_conv')
                y = conv(y, features, 3, stride, f'{name}_first_conv')
                y = norm_relu(y, f'{name}_second_norm')
                y = layers.Dropout(self.dropout, name=f'{name}_dropout')(y, train=train)
                x = layers.mark_images(x + conv(y, features, 3, 1, f'{name}_second_conv'))
        x = layers.global_avg_pool(norm_relu(x, 'last_norm'))
        x = layers.Dense(self.num_classes, dtype=self.dtype, name='classifier')(x)
        return x.astype(jnp.float32)
