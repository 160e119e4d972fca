"""Text from a trained language model, or translations from a trained translator.

A language model continues --prompt. With --translate a translator translates standard input line by
line. Only the texts go to standard output, as UTF-8.
"""

import io
import json
import sys
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError
from jaxdl.run import runtime


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
    line.boolean('json', 'print one JSON object a text')
    line.string('prompt', 'TEXT', 'the text to continue', empty=True)
    line.integer('tokens', 'most tokens to add', default=200, least=1)
    line.integer('num', 'how many continuations', default=1, least=1)
    line.number('temperature', '0 takes the most likely token', default=0.8)
    line.integer('top_k', 'choose among the k most likely tokens; 0: all', default=0)
    line.number('top_p', 'choose among the fewest tokens that reach this probability', default=1.0)
    line.integer('seed', 'another seed, another text', default=0)
    line.boolean('translate', 'translate the lines of standard input')
    line.integer('beams', "width of the search; the run's unless given", least=1)
    line.number('length_penalty', "above 0 prefers longer ones; the run's unless given", least=None)
    values = line.parse(argv)
    if not 0 < values.top_p <= 1:
        raise UserError(f'--top_p={values.top_p}: must be in (0, 1]')
    runtime.open_devices()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding='utf-8')

    from jaxdl.core.evaluation import readable_variables
    from jaxdl.run.open_run import open_run

    run = open_run(values.workdir, step=values.step, config_file=values.config or '', data=False)
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
