"""Writes with a trained model: python -m jaxdl sample --workdir=DIR --prompt="Once upon" [--tokens=200 …]

A language model continues the prompt:
    --prompt=TEXT  --tokens=N  --num=N  --temperature=T (0: the most likely)  --top_k=K  --top_p=P  --seed=N
A translation model translates the lines of standard input, one line each:
    --translate [--beams=N] [--length_penalty=A]   < sentences.txt
--step=N takes that checkpoint instead of the newest good one; --config=FILE[:variant] as for evaluate.
Only text goes to standard output.
"""

import json
import sys

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.errors import UserError
from jaxdl.run import runtime


def main(argv):
    runtime.prepare_process()
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    flags.DEFINE_integer(
        'step', None, 'the checkpoint; the newest good one by default', lower_bound=0
    )
    flags.DEFINE_string('config', '', 'the config file whose classes the run may use')
    flags.DEFINE_string('prompt', '', 'the text to continue')
    flags.DEFINE_integer('tokens', 200, 'most tokens to add', lower_bound=1)
    flags.DEFINE_integer('num', 1, 'how many continuations', lower_bound=1)
    flags.DEFINE_float('temperature', 0.8, '0 takes the most likely token', lower_bound=0)
    flags.DEFINE_integer('top_k', 0, 'choose among the k most likely tokens; 0: all', lower_bound=0)
    flags.DEFINE_float('top_p', 1.0, 'choose among the fewest tokens that reach this probability')
    flags.DEFINE_integer('seed', 0, 'another seed, another text', lower_bound=0)
    flags.DEFINE_boolean('json', False, 'print one JSON object a text')
    flags.DEFINE_boolean('translate', False, 'translate the lines of standard input')
    flags.DEFINE_integer('beams', None, "width of the search; the run's by default", lower_bound=1)
    flags.DEFINE_float('length_penalty', None, "above 0 prefers longer ones; the run's by default")
    left = cli.parse_flags(argv, __doc__ or '', required=('workdir',))
    if left:
        raise UserError(f'{left[0]!r} is not a flag; a prompt is written --prompt="{left[0]} …"')
    values = flags.FLAGS
    if not 0 < values.top_p <= 1:
        raise UserError(f'--top_p={values.top_p}: must be in (0, 1]')

    from jaxdl.core.evaluation import readable_variables
    from jaxdl.run.open_run import open_run

    run = open_run(values.workdir, step=values.step, data=False, config_file=values.config)
    task, model = run.config.task, run.config.model
    wanted = 'translate' if values.translate else 'continue_text'
    if not task.defines(wanted):
        other = 'translate' if not values.translate else 'continue_text'
        hint = {'translate': '; give --translate', 'continue_text': '; leave out --translate'}
        raise UserError(
            f'--workdir={values.workdir}: a model trained for {type(task).__name__} '
            f'{"translates" if values.translate else "continues"} no text'
            f'{hint[other] if task.defines(other) else ""}'
        )
    variables = readable_variables(run.state)
    if values.translate:
        _translate(task, model, variables, run.config.data, values)
    else:
        _continue(task, model, variables, run.config.data, values)


def _continue(task, model, variables, data, values) -> None:
    from jaxdl.models.decode import Sampling

    sampling = Sampling(temperature=values.temperature, top_k=values.top_k, top_p=values.top_p)
    texts = task.continue_text(
        model,
        variables,
        data,
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


def _translate(task, model, variables, data, values) -> None:
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
    written = task.translate(model, variables, data, lines, **options)
    for source, translation in zip(lines, written, strict=True):
        record = {'source': source, 'text': translation}
        print(json.dumps(record, ensure_ascii=False) if values.json else translation)
