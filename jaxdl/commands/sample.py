"""Text, translations or pictures from a trained model.

A language model continues --prompt. With --translate a translator translates standard input line by
line. Only the texts go to standard output, as UTF-8. A generative model of images draws --n pictures
into the PNG file --out.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError, nearest
from jaxdl.files import write_bytes
from jaxdl.run import runtime

# What a run's task can do, in words, and the flags that are for this alone.
KINDS = {
    'continue_text': ('continues text', ('prompt', 'tokens', 'num', 'temperature', 'top_k', 'top_p')),
    'translate': ('translates', ('translate', 'beams', 'length_penalty')),
    'draw': ('draws pictures', (
        'n', 'out', 'class', 'guidance', 'steps', 'sampler', 'interpolate', 'inpaint', 'mask',
    )),
}  # fmt: skip
# Options of Task.draw by the flags that give them.
OPTIONS = {'class': 'label', **{name: name for name in KINDS['draw'][1][3:]}}


def main(argv: Sequence[str]) -> None:
    runtime.prepare_process()
    line = CommandLine(
        __doc__ or '', example='--workdir=runs/char_rnn --prompt="Once upon" --tokens=100'
    )
    line.string('workdir', 'DIR', 'the folder of the run', required=True)
    line.integer('step', 'the checkpoint; the newest good one unless given')
    line.string(
        'config', 'FILE[:variant]', 'the config file whose classes the run may use; it is run'
    )
    line.boolean('json', 'print one JSON object a text, or one about the pictures')
    line.integer('seed', 'another seed, another text or picture', default=0)
    line.string('prompt', 'TEXT', 'the text to continue', empty=True)
    line.integer('tokens', 'most tokens to add', default=200, least=1)
    line.integer('num', 'how many continuations', default=1, least=1)
    line.number('temperature', '0 takes the most likely token', default=0.8)
    line.integer('top_k', 'choose among the k most likely tokens; 0: all', default=0)
    line.number('top_p', 'choose among the fewest tokens that reach this probability', default=1.0)
    line.boolean('translate', 'translate the lines of standard input')
    line.integer('beams', "width of the search; the run's unless given", least=1)
    line.number('length_penalty', "above 0 prefers longer ones; the run's unless given", least=None)
    line.integer('n', 'how many pictures; 64, or 8 rows of --interpolate, unless given', least=1)
    line.string('out', 'FILE', 'the PNG file of the pictures')
    line.string('class', 'CLASS', 'the class of all pictures: its number or name; else in turn')
    line.number('guidance', "guidance towards the class; the run's unless given, 1 is none")
    line.integer('steps', "steps of the sampler; the run's unless given", least=1)
    line.string('sampler', 'NAME', "the sampler; the run's unless given")
    line.integer('interpolate', 'pictures in a row that leads from one picture to another', least=2)
    line.string('inpaint', 'FILE', 'a picture of which the part under --mask is drawn anew')
    line.string('mask', 'FILE', 'a picture that is white where --inpaint is drawn anew, else black')
    values = line.parse(argv)
    if not 0 < values.top_p <= 1:
        raise UserError(f'--top_p={values.top_p}: must be in (0, 1]')
    runtime.open_devices()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding='utf-8')

    from jaxdl.core.evaluation import readable_variables
    from jaxdl.run.open_run import open_run

    run = open_run(values.workdir, step=values.step, config_file=values.config or '', data=False)
    task = run.config.task
    kind = _kind(task, values)
    call = {'continue_text': _continue, 'translate': _translate, 'draw': _draw}[kind]
    call(run, readable_variables(run.state), values)


def _kind(task: Any, values: SimpleNamespace) -> str:
    """What the task is asked to do; a flag that is for something else is refused."""
    can = [kind for kind in KINDS if task.defines(kind)]
    said = f'a model trained for {type(task).__name__}'
    if not can:
        raise UserError(f'--workdir={values.workdir}: {said} gives neither text nor pictures')
    kind = 'translate' if values.translate and 'translate' in can else can[0]
    if kind == 'translate' and not values.translate:
        raise UserError(f'--workdir={values.workdir}: {said} translates; give --translate')
    does, allowed = KINDS[kind]
    for other, flags in KINDS.values():
        for name in flags:
            if name in values.present and name not in allowed:
                raise UserError(
                    f'--{name}: is for a model that {other}; {said} {does}; leave out --{name}'
                )
    return kind


def _continue(run: Any, variables: Any, values: SimpleNamespace) -> None:
    from jaxdl.models.decode import Sampling

    sampling = Sampling(temperature=values.temperature, top_k=values.top_k, top_p=values.top_p)
    texts = run.config.task.continue_text(
        run.config.model,
        variables,
        run.config.data,
        values.prompt,
        count=values.num,
        length=values.tokens,
        sampling=sampling,
        seed=values.seed,
    )
    for index, text in enumerate(texts):
        if values.json:
            print(json.dumps({'prompt': values.prompt, 'text': text}, ensure_ascii=False))
        else:
            print(('\n' if index else '') + values.prompt + text)


def _translate(run: Any, variables: Any, values: SimpleNamespace) -> None:
    options = {
        name: value
        for name in ('beams', 'length_penalty')
        if (value := getattr(values, name)) is not None
    }
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f'standard input is not UTF-8 ({error}); convert it first') from None
    lines = [line.strip() for line in text.removesuffix('\n').split('\n')] if text else []
    config = run.config
    written = config.task.translate(config.model, variables, config.data, lines, **options)
    for source, translation in zip(lines, written, strict=True):
        record = {'source': source, 'text': translation}
        print(json.dumps(record, ensure_ascii=False) if values.json else translation)


def _draw(run: Any, variables: Any, values: SimpleNamespace) -> None:
    from jaxdl.record.pictures import encode_png, image_grid

    task, data = run.config.task, run.config.data
    if not values.out:
        raise UserError('--out is missing: the PNG file of the pictures, such as --out=grid.png')
    folder = os.path.dirname(values.out) or '.'
    if not values.out.lower().endswith('.png') or not os.path.isdir(folder):
        raise UserError(f'--out={values.out}: must be a file NAME.png in a folder that exists')
    flags = {name: flag for flag, name in OPTIONS.items()}
    known = [flags[name] for name in task.draw_options]
    given = [flag for flag in OPTIONS if flag in values.present]
    for flag in given:
        if flag not in known:
            takes = ', '.join(f'--{name}' for name in ('n', 'seed', *known))
            raise UserError(
                f'--{flag}: a model trained for {type(task).__name__} draws without it; it takes '
                f'{takes}'
            )
    if bool(values.inpaint) != bool(values.mask):
        raise UserError('--inpaint and --mask are given together: a picture, and what to redraw')
    options = {OPTIONS[flag]: getattr(values, flag) for flag in given}
    if 'label' in options:
        options['label'] = _label(getattr(values, 'class'), data.class_names())
    row = values.interpolate or 0
    if row and values.n and values.n % row:
        raise UserError(
            f'--n={values.n}: must be a multiple of --interpolate={row}, the pictures in a row'
        )
    if 'inpaint' in options:
        shape = tuple(run.program.example['image'].shape)
        options['inpaint'] = _picture('inpaint', values.inpaint, shape)
        options['mask'] = _picture('mask', values.mask, (*shape[:2], 1))[..., 0] >= 128
    drawn = task.draw(
        run.config.model, variables, data, values.n or 8 * row or 64, seed=values.seed, **options
    )
    try:
        write_bytes(values.out, encode_png(image_grid(drawn.images, columns=row)))
    except OSError as error:
        raise UserError(f'--out={values.out}: cannot be written: {error.strerror}') from None
    count, height, width, _ = drawn.images.shape
    if values.json:
        record = {'file': values.out, 'pictures': count, 'step': run.step, 'note': drawn.note}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(
            f'{values.out}: {count} pictures of {width}×{height}, step {run.step}'
            + f'; {drawn.note}' * bool(drawn.note)
        )


def _label(text: str, names: Sequence[str]) -> int:
    """The number of a class that is given by name or number."""
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and (not names or int(text) < len(names)):
        return int(text)
    raise UserError(
        f'--class={text}: must be a number{f" below {len(names)} or a name" if names else ""}'
        f'{nearest(text, names)}' + f'\nNames: {", ".join(names)}' * bool(names)
    )


def _picture(flag: str, path: str, shape: tuple[int, ...]) -> Any:
    """A picture file as uint8 [height, width, channels] of that shape."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = np.asarray(file.convert('L' if shape[-1] == 1 else 'RGB'))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'--{flag}={path}: cannot be read as a picture: {error}') from None
    if image.shape[:2] != shape[:2]:
        raise UserError(
            f'--{flag}={path}: has {image.shape[1]}×{image.shape[0]} pixels, the model draws '
            f'{shape[1]}×{shape[0]}; scale it first'
        )
    return image.reshape(shape)
