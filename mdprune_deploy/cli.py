"""The command line: `mdprune COMMAND`; every command is a file of `commands`."""

from __future__ import annotations

import signal
import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer

from .commands.bench import bench
from .commands.build_trt import build_trt
from .commands.common import stop
from .commands.compile import compile
from .commands.domains import add, drop
from .commands.inspect import inspect
from .commands.pack import pack
from .commands.run import run
from .commands.verify import verify

app = typer.Typer(
    name="mdprune",
    help="Compiles networks that serve several domains from shared weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (compile, add, drop, inspect, verify, run, bench, build_trt, pack):
    app.command()(_command)


def _version(asked: bool) -> None:
    if asked:
        print(f"mdprune {metadata.version('mdprune-deploy')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; what it ends with is the process's exit status."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    app()
