"""What all commands share: options, errors as exit codes, progress, printing."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, ParamSpec

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..checkpoint import Checkpoint, load_checkpoint
from ..errors import Error
from ..masks import fit_budget

P = ParamSpec("P")
Tick = Callable[[str, int, int], None]

UNEXPECTED = 1
PIPE_WIDTH = 160
"""Columns of a table that no terminal shows."""

MetricName = Literal["params", "macs", "switches"]
FitName = Literal["magnitude"]

BundleArgument = Annotated[Path, typer.Argument(metavar="OUT", help="A bundle's directory.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON; all else goes to stderr.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget", metavar="B", help="Largest used share of a domain's masked weights, in (0, 1]."
    ),
]
MetricOption = Annotated[MetricName, typer.Option("--metric", help="What the budget counts.")]
FitOption = Annotated[
    FitName | None,
    typer.Option(
        "--fit", help="How boolean masks outside the budget may be cut; without it they are not."
    ),
]
EngineOption = Annotated[str, typer.Option("--engine", metavar="E", help="What runs the domain.")]
ThreadsOption = Annotated[int, typer.Option("--threads", metavar="N", help="Threads of one call.")]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="cpu|cuda", help="Where the native engine computes.")
]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", metavar="float32|float16", help="In which type a GPU computes."),
]


_received: list[int] = []
"""Signals that asked for the end; see `stop`."""


def stop(number: int, frame: FrameType | None) -> None:
    """Handles a signal: the command cleans up and ends.

    That a signal came is kept, because the exception alone can be lost: compiled code that calls
    back into Python reports it as an error of its own, such as a file that cannot be read.
    """
    _received.append(number)
    raise KeyboardInterrupt


def command(body: Callable[P, None]) -> Callable[P, None]:
    """Turns what a command raises into one message on stderr and an exit code."""

    @functools.wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            body(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except BaseException as error:
            raise typer.Exit(_report(error)) from error

    return wrapped


def _report(error: BaseException) -> int:
    """Says on stderr what happened and returns the exit code; raises what is not for a user."""
    if _received or isinstance(error, KeyboardInterrupt):
        number = next(iter(_received), signal.SIGINT)
        _say("interrupted" if number == signal.SIGINT else "terminated")
        return 128 + number
    if isinstance(error, Error):
        _say(str(error))
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has gone; without this Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    if not isinstance(error, Exception) or "MDPRUNE_TRACEBACK" in os.environ:
        raise error
    _say(
        f"this is a bug in mdprune: {type(error).__name__}: {error}\nPlease report it with the "
        "command and what it prints with MDPRUNE_TRACEBACK=1 in the environment."
    )
    return UNEXPECTED


def _say(message: str) -> None:
    print(f"mdprune: {message}", file=sys.stderr)


def note(message: str) -> None:
    """Prints a remark on stderr."""
    print(message, file=sys.stderr)


def print_json(tree: Any) -> None:
    """Prints a result on stdout; numbers that JSON lacks are refused, never written."""
    print(json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False))


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on stdout; the first column holds names, the others numbers."""
    table = Table(title=Text(title), title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Tick]:
    """Shows progress on stderr while the block runs, if that is a terminal.

    Yields:
        A function that takes what begins, how much is done, and how much there is.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def tick(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {what}", completed=done, total=total)

        yield tick


def fitted(path: Path, budget: float | None, metric: MetricName, fit: FitName | None) -> Checkpoint:
    """Reads a checkpoint and fits its masks to a budget, as a compile with these options does."""
    checkpoint = load_checkpoint(path)
    return checkpoint if budget is None else fit_budget(checkpoint, budget, metric, fit)


def share(part: int, whole: int) -> str:
    """Returns a percentage, or a dash for a share of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


def size(count: int) -> str:
    """Returns bytes as a person reads them."""
    return f"{count / 1e6:,.2f} MB" if count >= 10_000 else f"{count:,} B"
