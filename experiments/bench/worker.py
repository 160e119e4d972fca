"""One way to run one case, in a process of its own that does as its standard input says.

Each line of standard input gets one line of JSON: `run SECONDS` trains for that long, `peak`
measures a float32 matrix product. `python -m experiments.bench.step` starts these.
"""

import importlib
import json
import os
import resource
import sys
import time

from jaxdl.run import runtime

# Steps between two looks at the clock on a GPU, whose queue the host keeps filled.
GPU_GROUP = 20


def main() -> None:
    """Reads the variant and the case from the command line, then serves commands."""
    variant, name, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what a library prints must not get between the replies
    words = variant.split()
    # The variants are on one GPU together.
    os.environ.setdefault('XLA_CLIENT_MEM_FRACTION', '0.1' if 'probe' in words else '0.4')
    environment = runtime.prepare_process()
    from experiments.bench.cases import CASES

    begin = time.perf_counter()
    case = CASES[name]
    part = 'loader' if case.kind == 'loader' else 'step'
    library = 'torch' if words[0] == 'torch' else 'jax'
    side = importlib.import_module(f'experiments.bench.{library}_{part}')
    probe = importlib.import_module(f'experiments.bench.{library}_step')
    group = GPU_GROUP if probe.GPU else 1
    step, about = None, {}
    if 'probe' not in words:  # which only measures the product
        step, about = side.build(case, batch, words[1:], group)
        for _ in range(3):
            step()
    about |= {'ready_s': time.perf_counter() - begin, 'environment': environment}
    print(json.dumps(about), file=replies, flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == 'peak':
            reply = probe.peak()
        else:
            reply = _run(step, float(rest[0]), group) | _memory(probe)
        print(json.dumps(reply), file=replies, flush=True)


def _memory(probe) -> dict:
    mib = probe.peak_mib()
    return {} if mib is None else {'peak_mib': mib}


def _run(step, seconds: float, group: int) -> dict:
    step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 3:
        started = time.perf_counter()
        step()
        times.append((time.perf_counter() - started) / group)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        'times': times,
        'cpu_s': cpu / len(times) / group,
        'page_faults': (after.ru_minflt - before.ru_minflt) / len(times) / group,
        'peak_mib': after.ru_maxrss / 1024,
    }


if __name__ == '__main__':
    if 'plain' in sys.argv[1].split():
        os.environ['JAXDL_PLAIN'] = '1'  # which the restart heeds as well
    runtime.restart_with_tuned_heap()
    main()
