"""The command line: thin commands over the library, used by the workflow's rules and by people.

A command imports what it needs when it runs, so that ``pusa --help`` and the commands without
a model answer at once.
"""

import os
import sys

from pusa.cli import (  # noqa: F401
    data,
    figures,
    generate,
    report,
    sample,
    score,
    train,
)
from pusa.cli.options import app
from pusa.cli.tiny import tiny

__all__ = ["app", "main", "tiny"]

#: Headings of the help in their order, by the modules of this folder.
_PANELS = {
    "generate": "Make videos",
    "data": "Data",
    "train": "Training and weights",
    "sample": "Sampling the suite and the tasks",
    "score": "Scoring",
    "report": "Tables and pages",
    "figures": "Analysis",
}
for _command in app.registered_commands:
    _command.rich_help_panel = _PANELS[_command.callback.__module__.rpartition(".")[2]]
app.registered_commands.sort(key=lambda command: [*_PANELS.values()].index(command.rich_help_panel))


def main() -> None:
    """Run a command; an error that the user can mend is one line, without a traceback."""
    # PyTorch's threads wait for each other by spinning, which on a machine that others use takes
    # the processor from the one that is waited for; see benchmarks/threads.py.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except (ValueError, OSError, FloatingPointError, ImportError, RecursionError) as error:
        # A name out of a file may hold what moves a terminal's cursor.
        told = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(error))
        print(f"error: {told}", file=sys.stderr)
        sys.exit(1)
