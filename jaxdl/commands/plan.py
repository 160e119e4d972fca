"""Tells what a run needs on GPUs that need not be there: memory, traffic and time of a step.

Compiles the real training step for these GPUs (with requirements-plan.txt; otherwise for a CPU, as
an estimate) and prints memory, FLOPs, traffic, kernels and the least time of a step. The cards are
{cards}.
"""

import json
import re
from collections.abc import Sequence

from jaxdl.compiled import cards, gpu_compile
from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError


def main(argv: Sequence[str]) -> int:
    about = (__doc__ or '').format(cards=', '.join(cards.cards()))
    line = CommandLine(about, example='--config=lm_small --devices=h100x8')
    line.config()
    line.string('devices', 'CARDxGPUSxHOSTS', 'CARD, CARDxGPUS or all three', required=True)
    line.number('network', 'GB/s of a host and direction; the usual host of that card unless given')
    line.boolean('json', 'print one JSON object')
    line.boolean('search', 'try layouts, rematerialisation and accumulation; prints the fastest')
    line.string(
        'largest',
        'FIELD',
        "the largest value of a field that fits; alone: of the model's number of layers",
    )
    line.string(
        'rows', 'NAME:TYPE[SHAPE],…', 'an example where the data set is not here: tokens:int32[512]'
    )
    line.boolean('estimate', 'the CPU program even where the CUDA compiler is installed')
    argv = ['--largest=auto' if word == '--largest' else word for word in argv]
    found = {}

    def prepare(given) -> None:
        """Sets the number of simulated devices before the config is run, which imports jax."""
        network = None if given.network is None else given.network * 1e9
        found['cluster'] = cards.parse(given.devices, network=network)
        found['cuda'] = gpu_compile.prepare_process(found['cluster'].devices)

    values = line.parse(argv, before_config=prepare)
    config, cluster, cuda = values.config, found['cluster'], found['cuda']
    from jaxdl.plan import (
        planning,  # slow to import, so only after the flags are read
        search,
    )
    from jaxdl.plan import text as plan_text

    cuda = cuda and not values.estimate
    if values.search or values.largest:
        own = [word for word in argv[1:] if not re.match(r'--?(search|largest|json)\b', word)]
        asker = search.Asker(own)
        if values.search:
            answer = search.search(config, cluster, asker)
        else:
            answer = search.largest(config, values.largest, asker)
        print(json.dumps(answer.to_json()) if values.json else answer.text(), flush=True)
        return 0
    rows = parse_rows(values.rows) if values.rows else None
    plan = planning.make(config, cluster, cuda=cuda, rows=rows)
    print(json.dumps(plan.to_json()) if values.json else plan_text.render(plan), flush=True)
    return 0


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
