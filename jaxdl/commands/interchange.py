"""Weights to and from Hugging Face's layout: BERT, GPT-2, Llama, Mistral, Qwen3 and ViT.

With --from_hf the folder of --workdir becomes a run at step 0 with these weights: training it
fine-tunes them, and other runs can start from it. With --to_hf the newest good checkpoint of the
run is written as config.json and model.safetensors.
"""

from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    runtime.prepare_process()
    line = CommandLine(__doc__ or '', example='--workdir=runs/bert_base --to_hf=exported')
    line.string('workdir', 'RUN', 'the folder of the run', required=True)
    line.string('from_hf', 'DIR|FILE', 'a folder or .safetensors file to read')
    line.string('to_hf', 'DIR', 'the folder to write')
    line.config(required=False)
    line.boolean('new_head', "keep the config's fresh head where the weights have no fitting one")

    def check(given) -> None:
        if bool(given.from_hf) == bool(given.to_hf):
            raise UserError('give one of --from_hf=DIR (with --config=NAME) and --to_hf=DIR')
        for name in ('config', 'new_head'):
            if given.to_hf and getattr(given, name):
                raise UserError(f'--{name} is for --from_hf; leave it out with --to_hf')
        if given.from_hf and not given.config:
            raise UserError(
                '--config is missing: --from_hf makes a run, so it needs the config of one'
            )

    given = line.parse(argv, before_config=check)
    runtime.open_devices()
    from jaxdl.interchange import weights  # slow to import, so only after the flags are read

    if given.from_hf:
        weights.import_run(given.config, given.workdir, given.from_hf, new_head=given.new_head)
        print(f'{given.from_hf} is now step 0 of the run {given.workdir}')
    else:
        step = weights.export_run(given.workdir, given.to_hf)
        print(f'step {step} of {given.workdir} is now in {given.to_hf}')
