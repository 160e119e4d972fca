"""A trained model as one file for other software: StableHLO, ONNX or safetensors.

StableHLO (jax.export) and ONNX hold the whole function from the arrays of a row to the predictions,
with the weights inside (averaged if the run averages) and for any number of rows; StableHLO for CPUs
and NVIDIA GPUs. safetensors holds the arrays alone, by their paths. Weights in Hugging Face's layout:
jaxdl interchange.
"""

from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    runtime.prepare_process()
    line = CommandLine(
        __doc__ or '', example='--workdir=runs/digits_cnn --format=onnx --out=digits.onnx'
    )
    line.string('workdir', 'DIR', 'the folder of the run', required=True)
    line.choice('format', ('stablehlo', 'onnx', 'safetensors'), 'what to write')
    line.string('out', 'FILE', 'the file to write', required=True)
    line.integer('step', 'the checkpoint; the newest good one unless given')
    line.string(
        'config', 'FILE[:variant]', 'the config file whose classes the run may use; it is run'
    )
    given = line.parse(argv)
    runtime.open_devices()
    from jaxdl.predict.export import export
    from jaxdl.predict.predictor import load

    model = load(given.workdir, step=given.step, config=given.config or '')
    print('\n'.join(export(model, given.format, given.out)))
