"""Judges a run before it starts: python -m jaxdl plan --config=configs/NAME.py --devices=h100x8 [--config.FIELD=VALUE …]

Compiles the real train step for GPUs that need not be there (requirements-plan.txt; without it, an
estimate from a CPU program) and prints memory, FLOPs, traffic, kernels and the least time of a step.

  --devices=CARDxGPUSxHOSTS   v100-16 v100-32 a100-40 a100-80 h100 h200 b200 rtx4090 gtx1080
  --network=GB/S              of a host and direction; default: the usual host of that card
  --json                      one JSON object instead of the text
  --search                    tries layouts, rematerialisation and accumulation; prints the fastest
  --largest[=FIELD]           the largest value of FIELD (default: the model's number of layers) that fits
  --rows=NAME:TYPE[SHAPE],…   shapes of an example where the data set is not here: tokens:int32[512]
  --estimate                  the CPU program even where the CUDA compiler is installed
"""

import json
import re
from collections.abc import Sequence

from absl import flags

from jaxdl.compiled import cards, gpu_compile
from jaxdl.core import flags as cli
from jaxdl.errors import UserError


def main(argv: Sequence[str]) -> int:
    flags.DEFINE_string('config', '', 'configs/NAME.py[:variant]')
    flags.DEFINE_string('devices', '', 'CARD, CARDxGPUS or CARDxGPUSxHOSTS')
    flags.DEFINE_float('network', None, 'GB/s of a host and direction')
    flags.DEFINE_bool('json', False, 'print one JSON object')
    flags.DEFINE_bool('search', False, 'find the fastest layout')
    flags.DEFINE_bool('estimate', False, 'compile for CPUs')
    flags.DEFINE_string('rows', '', 'shapes of an example')
    flags.DEFINE_string('largest', None, 'find the largest value of a field that fits')
    argv = ['--largest=auto' if word == '--largest' else word for word in argv]
    # The number of devices must be known before jax is imported, and a config imports it.
    devices, network = _word(argv, 'devices'), _word(argv, 'network')
    wants_help = any(word in ('--help', '-h', '--helpfull', '--helpshort') for word in argv)
    cuda = False
    if devices or not wants_help:
        if not devices:
            raise UserError('--devices is missing, for example --devices=h100x8 (8 GPUs of a host)')
        try:
            speed = float(network) * 1e9 if network else None
        except ValueError:
            raise UserError(f'--network={network}: must be a number, GB/s of a host') from None
        cluster = cards.parse(devices, network=speed)
        cuda = gpu_compile.prepare_process(cluster.devices)
    config = cli.parse_config(argv, __doc__ or '')
    values = flags.FLAGS
    from jaxdl.plan import (
        planning,  # heavy; wrong flags need not wait for it
        search,
    )
    from jaxdl.plan import text as plan_text

    cuda = cuda and not values.estimate
    if values.search or values.largest:
        own = [word for word in argv[1:] if not re.match(r'--?(search|largest|json)\b', word)]
        asker = search.Asker(own)
        if values.search:
            found = search.search(config, cluster, asker)
        else:
            found = search.largest(config, values.largest, asker)
        print(json.dumps(found.to_json()) if values.json else found.text(), flush=True)
        return 0
    rows = parse_rows(values.rows) if values.rows else None
    plan = planning.make(config, cluster, cuda=cuda, rows=rows)
    print(json.dumps(plan.to_json()) if values.json else plan_text.render(plan), flush=True)
    return 0


def _word(argv: Sequence[str], name: str) -> str:
    for index, word in enumerate(argv):
        if re.match(rf'--?{name}=', word):
            return word.partition('=')[2]
        if word in (f'--{name}', f'-{name}') and index + 1 < len(argv):
            return argv[index + 1]
    return ''


def parse_rows(text: str) -> dict:
    """'tokens:int32[512],label:int32[]' → {name: ShapeDtypeStruct}; UserError for anything else."""
    import jax
    import jax.numpy as jnp

    found = {}
    for name, dtype, dims, rest in re.findall(r'(\w+):(\w+)\[([\d,]*)\](?:,|$)|(.+)', text):
        try:
            if rest:
                raise TypeError
            shape = tuple(int(size) for size in dims.split(',') if size)
            found[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        except TypeError:
            raise UserError(
                f'--rows={text}: must be NAME:TYPE[SHAPE], one or more with commas between, '
                'e.g. tokens:int32[512],segments:int32[512] or image:uint8[224,224,3],label:int32[]'
            ) from None
    return found
