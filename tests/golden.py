"""The resolved config of every shipped config as JSON, so that a change shows which runs it alters.

python -m tests.golden writes the files under tests/golden/ anew; look at the difference.
"""

import json
import sys
from pathlib import Path

from jaxdl.core import config as config_lib
from jaxdl.core import flags

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'tests' / 'golden'


def names() -> list[str]:
    """'NAME' and 'NAME:variant' of every file under configs/."""
    found = []
    for path in sorted((ROOT / 'configs').glob('*.py')):
        found.append(path.stem)
        variants = getattr(flags.load_module(str(path)), 'VARIANTS', ())
        found += [f'{path.stem}:{variant}' for variant in variants if variant]
    return found


def load(name: str) -> config_lib.Config:
    stem, _, variant = name.partition(':')
    return flags.load_config(
        str(ROOT / 'configs' / f'{stem}.py') + (f':{variant}' if variant else '')
    )


def resolved(name: str) -> dict:
    return json.loads(json.dumps(config_lib.to_json(load(name))))


def path(name: str) -> Path:
    return FOLDER / f'{name.replace(":", "-")}.json'


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    kept = set()
    for name in names():
        path(name).write_text(json.dumps(resolved(name), indent=1, ensure_ascii=False) + '\n')
        kept.add(path(name))
    for old in set(FOLDER.glob('*.json')) - kept:
        old.unlink()
    return 0


if __name__ == '__main__':
    sys.exit(main())
