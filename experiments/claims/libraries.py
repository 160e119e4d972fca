"""Claim 3, libraries: the same mathematics through less and more of what compilers and libraries do."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.claims import base
from experiments.claims.base import MEASURED, Absent, Part, Settings, Shown

QUESTION = 'What do compilers and tuned libraries make of the same mathematics?'
CLAIM = 'Optimised libraries (cuBLAS, cuDNN, oneDNN, XLA) are why frameworks are fast.'


def parts(settings: Settings) -> list[Part]:
    enough = 0.3 if settings.quick else 2.0
    return [
        ('compilation', lambda: compilation(enough)),
        ('attention', lambda: attention(enough, 256 if settings.quick else 1024)),
        ('precision', lambda: precision(enough, 512 if settings.quick else 2048)),
        ('convolution', lambda: convolution(enough, 8 if settings.quick else 64)),
        ('kernels', kernels),
    ]


def _timed(calls: dict[str, Callable[[], Any]], enough: float) -> dict[str, Any]:
    """{name: seconds of a call, or why there are none}."""
    import jax

    found: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            found[name] = base.seconds_of(
                lambda c=call: jax.block_until_ready(c()), enough=enough, least=2
            )
        except Absent as error:
            found[name] = f'absent: {error}'
        except Exception as error:  # a type or kernel that this machine does not have
            found[name] = f'not supported: {str(error).splitlines()[0][:120]}'
    return found


def compilation(enough: float) -> dict[str, Any]:
    """A training step of a Transformer, each operation by itself, in parts, and as one program."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxdl.models.transformer import modern

    model = modern(vocab=256, width=128, layers=2, heads=4)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 64)), jnp.int32)
    params = model.init(jax.random.key(0), tokens, train=False)
    rule = optax.adamw(1e-3)
    state = rule.init(params)

    def loss(params):
        logits: Any = model.apply(params, tokens, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    gradient, whole = jax.jit(jax.grad(loss)), jax.jit(step)

    def eager():
        with jax.disable_jit():
            return step(params, state)

    def in_parts():
        updates, new = rule.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), new

    calls = {
        'eager: every operation by itself': eager,
        'jit: gradient compiled, optimizer by itself': in_parts,
        'fused: the whole step one program': lambda: whole(params, state),
    }
    return _timed(calls, enough)


def attention(enough: float, time: int) -> dict[str, Any]:
    """Causal attention, forward and backward, in the formulations that there are."""
    import jax
    import jax.numpy as jnp

    from jaxdl.models import ops

    key = jax.random.key(0)
    q, k, v = jax.random.normal(key, (3, 4, time, 4, 64), jnp.float32)

    def gradient(function):
        return jax.jit(jax.grad(lambda q, k, v: function(q, k, v).sum(), argnums=(0, 1, 2)))

    chosen = gradient(lambda q, k, v: ops.attention(q, k, v, causal=True))
    plain = gradient(lambda q, k, v: ops.plain.attention(q, k, v, causal=True))
    of_jax = gradient(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))

    def cudnn():
        if jax.default_backend() != 'gpu':
            raise Absent('needs an NVIDIA GPU')
        half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
        fused = lambda q, k, v: jax.nn.dot_product_attention(  # noqa: E731
            q, k, v, is_causal=True, implementation='cudnn'
        )
        return gradient(fused)(*half)

    calls = {
        'plain: all scores written to memory': lambda: plain(q, k, v),
        'jax.nn.dot_product_attention': lambda: of_jax(q, k, v),
        f'chosen by jaxdl here ({ops.platform()})': lambda: chosen(q, k, v),
        'cuDNN, bfloat16': cudnn,
    }
    return {'time': time, **_timed(calls, enough)}


def precision(enough: float, size: int) -> dict[str, Any]:
    """A matrix product in each type, accumulated in float32."""
    import jax
    import jax.numpy as jnp

    def product(dtype):
        x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
        return lambda: multiply(x, x)

    types = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn)
    return {'size': size, **_timed({jnp.dtype(t).name: product(t) for t in types}, enough)}


def convolution(enough: float, batch: int) -> dict[str, Any]:
    """A 3×3 convolution, 64 to 64 channels of 32×32: as the formula is written, and by libraries."""
    import jax
    import jax.numpy as jnp

    from jaxdl.models import ops

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 32, 32, 64), np.float32)
    kernel = rng.standard_normal((3, 3, 64, 64), np.float32)
    x, w = jnp.asarray(images), jnp.asarray(kernel)
    by_xla = jax.jit(ops.plain.conv)
    chosen = jax.jit(ops.conv)

    def of_torch():
        try:
            import torch
        except ImportError:
            raise Absent('PyTorch is not installed') from None
        if not torch.backends.mkldnn.is_available():
            raise Absent('this PyTorch has no oneDNN')
        where = (
            torch.from_numpy(images)
            .permute(0, 3, 1, 2)
            .contiguous(memory_format=torch.channels_last)
        )
        weights = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()

        def call():
            with torch.inference_mode():
                return torch.nn.functional.conv2d(where, weights, padding=1).numpy()

        return call

    calls: dict[str, Callable[[], Any]] = {
        'as written: one place after the other, NumPy': lambda: as_written(images, kernel),
        '9 shifts, each a matrix product, NumPy': lambda: by_shifts(images, kernel),
        'XLA': lambda: by_xla(x, w),
        f'chosen by jaxdl here ({ops.platform()})': lambda: chosen(x, w),
    }
    found = {'flops': 2 * 9 * 64 * 64 * 32 * 32 * batch, **_timed(calls, enough)}
    name = 'oneDNN, through PyTorch'
    try:
        call = of_torch()
    except Absent as error:
        return {**found, name: f'absent: {error}'}
    error = float(np.abs(np.transpose(call(), (0, 2, 3, 1)) - np.asarray(by_xla(x, w))).max())
    return {**found, **_timed({name: call}, enough), 'difference': error}


def as_written(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """y[b, i, j] = Σ over (r, s, c) of x[b, i + r - 1, j + s - 1, c] · w[r, s, c], zeros outside."""
    batch, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.empty((batch, height, width, kernel.shape[3]), np.float32)
    flat = kernel.reshape(-1, kernel.shape[3])
    for place in np.ndindex(batch, height, width):
        example, row, column = place
        found[place] = padded[example, row : row + 3, column : column + 3].reshape(-1) @ flat
    return found


def by_shifts(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The same sum, with the nine offsets outside and a matrix product for each."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros((*images.shape[:3], kernel.shape[3]), np.float32)
    for row, column in np.ndindex(3, 3):
        total += padded[:, row : row + height, column : column + width] @ kernel[row, column]
    return total


def kernels() -> dict[str, Any]:
    """Which kernels the GPU program of a language model got."""
    plan = base.plan(['--config=stdlib_lm', '--config.model.dtype=bfloat16'], 'h100')
    return {'kernels': plan['kernels']}


TITLES = {
    'compilation': 'A training step of a small Transformer',
    'attention': 'Causal attention, forward and backward',
    'precision': 'A matrix product by type',
    'convolution': 'A 3×3 convolution, forward',
}


def present(values: dict[str, Any]) -> Shown:
    from experiments.claims.draw import bars

    shown, said = Shown('', MEASURED), []
    for part, title in TITLES.items():
        found = values.get(part)
        if found is None:
            continue
        about = {k: v for k, v in found.items() if k in ('time', 'size', 'flops', 'difference')}
        times = {k: v for k, v in found.items() if k not in about}
        got = {k: v for k, v in times.items() if not isinstance(v, str)}
        first = next(iter(got.values()), 1.0)
        title += f', {about["time"]} tokens' if 'time' in about else ''
        title += f', {about["size"]} × {about["size"]}' if 'size' in about else ''
        rows = [(k, 1e3 * v, base.duration(v)) for k, v in got.items()]
        if rows:
            figure = bars(rows, label='milliseconds', log=part == 'compilation')
            shown.figures.append((title, figure))
        rows = [
            [k, base.duration(v), f'{first / v:.2f}×'] if not isinstance(v, str) else [k, v, '']
            for k, v in times.items()
        ]
        shown.tables.append((title, ['form', 'a call', 'against the first'], rows))
        if 'difference' in about:
            shown.notes.append(
                f'The convolution of oneDNN and that of XLA differ by at most {about["difference"]:.1g}.'
            )
        if part == 'compilation' and len(got) == 3:
            eager, parts_, fused = got.values()
            said.append(
                f'one compiled step is {eager / fused:.0f} times as fast as eager operations'
            )
            said[-1] += f' and {parts_ / fused:.1f} times as fast as a step compiled in parts'
        if part == 'convolution' and len(got) > 1:
            best = min(got, key=lambda k: got[k])
            said.append(
                f'the fastest convolution ({best}) is {first / got[best]:.0f} times as fast as the formula as written'
            )
        if part == 'precision' and 'bfloat16' in got:
            said.append(
                f'a bfloat16 product runs at {first / got["bfloat16"]:.2f} times the float32 one'
            )
    shown.answer = '; '.join(said)[:1].upper() + '; '.join(said)[1:] + '.'
    if 'kernels' in values:
        rows = [
            [k, lib, d, n, f'{base.share(s, 1)}']
            for k, lib, d, n, s in values['kernels']['kernels']
        ]
        shown.tables.append(
            ('Kernels of stdlib_lm on an H100 (predicted: compiled, not run)', ['kernel', 'library', 'type', 'in a step', 'of the FLOPs'], rows)
        )  # fmt: skip
    return shown
