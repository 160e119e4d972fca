"""A finished or running run opened for reading: its config, its program, its newest good state."""

import dataclasses
from typing import Any

from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.feed import Feed
from jaxdl.core.program import Program
from jaxdl.core.step import TrainState
from jaxdl.errors import UserError
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir


@dataclasses.dataclass
class Restored:
    """What `open_run` found.

    Attributes:
        config: the run's config, with this machine's mesh.
        step: of the checkpoint.
        state: its state, on this machine's devices.
        program: for evaluation and sampling.
        eval_sources: the evaluation sets, {name: source}.
        workdir: the run's folder.
    """

    config: Config
    step: int
    state: TrainState
    program: Program
    eval_sources: dict[str, Any]
    workdir: Workdir


def open_run(path: str, *, step: int | None = None, data: bool = True) -> Restored:
    """Opens a run's folder without changing anything in it.

    The config comes from config.json, so the folder is enough; the mesh of the run is used where it
    fits the devices that are here, and pure data parallelism otherwise.

    With data=False the evaluation sets stay closed, and a data set that knows its shapes without
    its files (`example`) is not read at all.

    Raises:
        UserError: no run, no good checkpoint, or its classes are gone.
    """
    workdir = Workdir(path)
    if not workdir.path.is_dir():
        raise UserError(f'--workdir={path}: there is no such folder')
    config = config_lib.from_json(workdir.read_config())
    if not isinstance(config, Config):
        raise UserError(f'{workdir.config} does not hold a Config')
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(
            f'--workdir={path} holds no checkpoint yet; train on, or set checkpoint.every'
        )
    if step is not None and step not in steps:
        raise UserError(f'--step={step}: the checkpoints are {", ".join(map(str, steps))}')
    try:
        mesh = mesh_lib.make_mesh(config.mesh)
    except UserError:
        mesh = mesh_lib.make_mesh(config_lib.Mesh())
    config.data.recall(workdir.path)
    sources = config.data.eval_sources() if data else {}
    example = None if data else config.data.example()
    if example is None:
        source = next(iter(sources.values())) if sources else config.data.train_source()
        example = Feed(source, mesh_lib.batch_shards(mesh), mesh, placement='stream').example
    program = Program(config, mesh, {k: v for k, v in example.items() if k != 'id'})
    found, state, _ = checkpoints.restore(program.abstract, step=step)
    checkpoints.close()
    return Restored(config, found, state, program, sources, workdir)
