"""A terminal for tests: what is written to it, and what it shows then."""

import io
import re


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True

    def screen(self) -> list[str]:
        """The lines on the screen, without colours."""
        lines, row, column = [''], 0, 0
        for part in re.split(r'(\x1b\[[?\d;]*[A-Za-z]|\r|\n)', self.getvalue()):
            if part == '\n':
                row += 1
                column = 0
                lines += [''] * (row + 1 - len(lines))
            elif part == '\r':
                column = 0
            elif up := re.fullmatch(r'\x1b\[(\d+)A', part):
                row -= int(up[1])
                assert row >= 0
            elif part == '\x1b[2K':
                lines[row] = ''
            elif part.startswith('\x1b'):
                assert part.endswith('m'), f'{part!r} is no colour'
            else:
                old = lines[row].ljust(column)
                lines[row] = old[:column] + part + old[column + len(part) :]
                column += len(part)
        return lines
