"""Environment steps per second of PPO: jaxdl's step, a whole run, and a plain program, in turn.

    python -m experiments.rl.speed [--case=cartpole|breakout] [--rounds=3] [--updates=8]

All have the same network, environments, rollout and minibatches. `plain` is experiments/rl/plain_ppo.py,
one compiled program of `updates` updates. `step` is the compiled step of jaxdl, called as often. `run` is
a whole run with its logs, an evaluation and a checkpoint: its seconds without start-up and compiling.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from jaxdl.run import runtime

CASES = {
    'cartpole': ('CartPole-v1', 2048, 32, 4),
    'breakout': ('Breakout-MinAtar', 1024, 32, 8),
}


def config_of(case: str, updates: int):
    from jaxdl.core.config import Checkpoint, Config
    from jaxdl.core.optim import AdamW, Linear
    from jaxdl.data.seeds import Seeds
    from jaxdl.environments.gymnax import Gymnax
    from jaxdl.models.policy import ActorCritic
    from jaxdl.tasks.ppo import Ppo

    name, environments, rollout, minibatches = CASES[case]
    image = {'channels': (16,), 'widths': (128,), 'activation': 'relu', 'shared': True}
    model = ActorCritic(actions=3, **image) if case == 'breakout' else ActorCritic(actions=2)
    return Config(
        model=model,
        task=Ppo(Gymnax(name), rollout=rollout, epochs=4, minibatches=minibatches),
        data=Seeds(episodes=64),
        optimizer=AdamW(learning_rate=1e-3, schedule=Linear(), eps=1e-5, clip_norm=0.5),
        batch_size=environments,
        eval_batch_size=64,
        steps=updates,
        log_every=max(1, updates // 4),
        eval_every=updates,
        checkpoint=Checkpoint(every=updates),
    )


def plain(case: str, updates: int):
    import jax

    from experiments.rl.plain_ppo import Network, make_train

    name, environments, rollout, minibatches = CASES[case]
    image = {'channels': (16,), 'widths': (128,)}
    network = Network(3, **image) if case == 'breakout' else Network(2)
    train = make_train(
        name,
        network=network,
        environments=environments,
        rollout=rollout,
        epochs=4,
        minibatches=minibatches,
        updates=updates,
        rate=1e-3,
    )
    compiled = jax.jit(train).lower(jax.random.key(0)).compile()

    def once(seed: int):
        jax.block_until_ready(compiled(jax.random.key(seed)))

    return once


def step(case: str, updates: int):
    import jax

    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.feed import Feed
    from jaxdl.core.pipeline import Order
    from jaxdl.core.program import Program

    config = config_of(case, updates)
    mesh = mesh_lib.make_mesh(config.mesh)
    feed = Feed(config.data.train_source(), config.batch_size, mesh)
    program = Program(config, mesh, feed.example)
    compiled, _ = program.compile_train(feed.abstract(mask=False), feed.resident)
    order = Order(len(feed.source), config.batch_size, 0)
    hyper = program.place_hyper()

    def once(seed: int):
        del seed
        state = program.init({})
        jax.block_until_ready(state)
        began = time.perf_counter()
        for index in range(updates):
            batch = feed.place(feed.load(order.batch(index)))
            state, packed = compiled(state, batch, feed.resident, hyper)
            del packed
        jax.block_until_ready(state)
        return time.perf_counter() - began

    return once


def run(case: str, updates: int):
    from jaxdl.run.loop import train

    def once(seed: int):
        config = dataclasses.replace(config_of(case, updates), seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            train(config, folder)
            rows = [json.loads(line) for line in (Path(folder) / 'metrics.jsonl').open()]
        spent = {k: v for row in rows for k, v in row.items() if k.startswith('perf/time_')}
        ready = sum(spent.get(f'perf/time_{part}_s', 0) for part in ('import', 'init', 'compile'))
        return max(row['perf/wall_s'] for row in rows if 'perf/wall_s' in row) - ready

    return once


def main() -> None:
    """Parses the command line, measures in turn and prints a line a round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--case', choices=CASES, default='cartpole')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--updates', type=int, default=8)
    parser.add_argument('--parts', default='plain,step')
    given = parser.parse_args()
    runtime.prepare_process()
    runtime.open_devices()
    _, environments, rollout, _ = CASES[given.case]
    steps = environments * rollout * given.updates
    parts = {name: globals()[name](given.case, given.updates) for name in given.parts.split(',')}
    for once in parts.values():
        once(0)
    for index in range(given.rounds):
        words = []
        for name, once in parts.items():
            began = time.perf_counter()
            own = once(index + 1)
            seconds = time.perf_counter() - began if own is None else own
            words.append(f'{name} {steps / seconds:,.0f}')
        print(f'{given.case} round {index + 1}: {", ".join(words)} environment steps/s', flush=True)


if __name__ == '__main__':
    main()
