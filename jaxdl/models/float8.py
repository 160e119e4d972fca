"""A model's dense layers in float8, through qwix (an optional package, requirements-fp8.txt)."""

import flax.linen as nn

from jaxdl.models import ops


def quantized(model: nn.Module) -> nn.Module:
    """The same model, with the same parameters, whose dense layers take float8 operands.

    Weights and activations become e4m3, incoming gradients e5m2, each array with one scale found
    from its greatest value in the step (arXiv:2209.05433); sums stay as wide as they were.
    Convolutions, attention, norms and everything element-wise are as before.

    Raises:
        ValueError: for CPUs, whose own formulations of products know no float8.
    """
    if ops.platform() == 'cpu':
        raise ValueError('float8 is for GPUs; on a CPU it runs only with JAXDL_PLAIN=1, as a trial')
    import qwix

    rule = qwix.QtRule(
        module_path='.*',
        op_names=('dot_general',),  # its gradient of a convolution mixes types that XLA refuses
        weight_qtype='float8_e4m3fn',
        act_qtype='float8_e4m3fn',
        bwd_qtype='float8_e5m2',
        disable_channelwise_axes=True,
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]))
