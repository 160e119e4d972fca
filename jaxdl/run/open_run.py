"""Opens a run's folder for reading: its config, its program and its newest good state."""

import dataclasses
from pathlib import Path

from jaxdl.api import Source
from jaxdl.core import config as config_lib
from jaxdl.core import flags as cli
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.feed import Feed
from jaxdl.core.program import Program
from jaxdl.core.step import TrainState
from jaxdl.errors import UserError
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir
from jaxdl.record.identity import hash_of
from jaxdl.record.run_info import example_row


@dataclasses.dataclass
class Restored:
    """The result of `open_run`.

    Attributes:
        config: the run's config, with this machine's mesh.
        step: the step of the checkpoint.
        state: the state in it, on this machine's devices.
        program: for evaluation and sampling.
        eval_sources: the evaluation sets, {name: source}.
        workdir: the run's folder.
        class_names: the names of the labels in order; () if they have none.
    """

    config: Config
    step: int
    state: TrainState
    program: Program
    eval_sources: dict[str, Source]
    workdir: Workdir
    class_names: tuple[str, ...]


def open_run(
    path: str, *, step: int | None = None, data: bool = True, config_file: str = ''
) -> Restored:
    """Opens a run's folder without changing anything in it.

    The config comes from config.json, so the folder is enough. The run's mesh is used if it fits
    the devices of this machine, and pure data parallelism otherwise.

    With data=False the evaluation sets are not opened: the shapes of a row stand in run.json. Only
    for a run of an earlier version, and a data set that does not know them either (`example`), are
    the sets read for them.

    Args:
        config_file: 'FILE[:variant]'; the file is run, and config.json may name its classes besides
            those of config.TRUSTED. A run's own copy is config.py in its folder.

    Raises:
        UserError: there is no run or no good checkpoint, its classes are missing or may not be
            imported, or its files or evaluation sets are not those that it was trained with.
    """
    workdir = Workdir(path)
    if not workdir.path.is_dir():
        raise UserError(f'--workdir={path}: there is no such folder')
    tree = workdir.read_config()
    checkpoints = Checkpoints(workdir.checkpoints, config_lib.Checkpoint(), read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(
            f'--workdir={path} holds no checkpoint yet; train on, or set checkpoint.every'
        )
    if step is not None and step not in steps:
        raise UserError(f'--step={step}: the checkpoints are {", ".join(map(str, steps))}')
    config = _config(workdir, tree, config_file, checkpoints)
    record = checkpoints.check(step)
    config_lib.check(dataclasses.replace(config, float8=False))  # only training needs qwix
    try:
        mesh = mesh_lib.make_mesh(config.mesh)
    except UserError:
        mesh = mesh_lib.make_mesh(config_lib.Mesh())
    config.data.recall(workdir.path)
    sources = {}
    if data and record.get('data'):
        known = {name: value for name, value in record['data'].items() if name != 'train'}
        workdir.check_data(known, config.data.fingerprint(train=False))
    if data:
        sources = config.data.eval_sources()
    run = workdir.read_run()
    example = None if data else example_row(run.get('row')) or config.data.example()
    if example is None:
        source = next(iter((sources or config.data.eval_sources()).values()), None)
        source = source or config.data.train_source()
        example = Feed(source, mesh_lib.batch_shards(mesh), mesh, placement='stream').example
    program = Program(config, mesh, {k: v for k, v in example.items() if k != 'id'})
    found, state, _ = checkpoints.restore(program.abstract, step=step)
    checkpoints.close()
    classes = run.get('classes')
    names = tuple(map(str, classes)) if isinstance(classes, list) else config.data.class_names()
    return Restored(config, found, state, program, sources, workdir, names)


def _config(
    workdir: Workdir, tree: dict, config_file: str, checkpoints: Checkpoints
) -> config_lib.Config:
    """The config of config.json; a config file that the user names is run first."""
    given = None
    if config_file:
        path = Path(config_file.partition(':')[0])
        saved = checkpoints.check().get('files', {}).get('config.py')
        if saved and hash_of(path) != saved:
            raise UserError(
                f'--config={config_file}: {path} is not the file that the run was trained with; '
                f'{workdir.source} is a copy of that one, unless it was changed'
            )
        given = cli.load_config(config_file)
    try:
        config = config_lib.from_json(tree, given)
    except UserError as error:
        kept = f'\nIts own is kept as {workdir.source}: read it before you run it' * (
            workdir.source.is_file() and not config_file
        )
        raise UserError(f'--workdir={workdir.path}: {error}{kept}') from None
    if not isinstance(config, Config):
        raise UserError(f'{workdir.config} does not hold a Config')
    return config
