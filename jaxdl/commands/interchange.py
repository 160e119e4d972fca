"""Weights to and from Hugging Face's layout: BERT, GPT-2 and ViT as config.json + model.safetensors.

python -m jaxdl interchange --from_hf=DIR|FILE --config=configs/NAME.py --workdir=RUN [--new_head]
python -m jaxdl interchange --workdir=RUN --to_hf=DIR

The first makes the run folder RUN at step 0 with the weights of DIR: training it fine-tunes them,
and other runs can start from it. --new_head keeps the config's own fresh head where DIR has none or
one for other classes. The second writes the newest good checkpoint of RUN for others to load.
"""

import re

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.errors import UserError
from jaxdl.interchange import weights
from jaxdl.run import runtime


def main(argv):
    runtime.prepare_process()
    flags.DEFINE_string('from_hf', '', "a folder or .safetensors file in Hugging Face's layout")
    flags.DEFINE_string('to_hf', '', 'the folder to write config.json and model.safetensors to')
    flags.DEFINE_string('config', '', 'configs/NAME.py[:variant] of the run to make')
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    flags.DEFINE_boolean(
        'new_head', False, 'keep a fresh head where the weights have no fitting one'
    )
    importing = any(re.match(r'--?config', word) for word in argv[1:])
    if importing:
        config = cli.parse_config(argv, __doc__ or '')
    else:
        cli.parse_flags(argv, __doc__ or '', required=('workdir',))
    values = flags.FLAGS
    if not values.workdir:
        raise UserError('--workdir is missing: the folder of the run')
    if bool(values.from_hf) == bool(values.to_hf):
        raise UserError('give one of --from_hf=DIR (with --config=…) and --to_hf=DIR')
    if values.from_hf:
        if not importing:
            raise UserError(
                '--config is missing: --from_hf makes a run, so it needs the config of one'
            )
        weights.import_run(config, values.workdir, values.from_hf, new_head=values.new_head)
        print(f'{values.from_hf} is now step 0 of the run {values.workdir}')
    else:
        step = weights.export_run(values.workdir, values.to_hf)
        print(f'step {step} of {values.workdir} is now in {values.to_hf}')
