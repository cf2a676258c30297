"""Roster's command line: copy, import, export, backup (``python cli.py --help``)."""

import signal

import typer

from commands.backup import backup
from commands.copying import copy
from commands.exporting import export
from commands.importing import import_users
from commands.terminal import one_line

# The defaults would print variables, and so passwords, in tracebacks.
app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Copy, import, export and back up Roster's users.",
)
app.command()(one_line(copy))
app.command("import")(one_line(import_users))
app.command()(one_line(export))
app.command()(one_line(backup))

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # as Ctrl-C
    app(prog_name="python cli.py")
