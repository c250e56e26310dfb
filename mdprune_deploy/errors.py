"""Errors raised on purpose, each with the exit code that the command line returns for it."""


class Error(Exception):
    """Base of every error that mdprune raises on purpose.

    Attributes:
        exit_code: The command line's exit status for this error.
    """

    exit_code = 2


class UsageError(Error):
    """An argument is wrong, or the output cannot be written where it was asked for."""

    exit_code = 2


class CheckpointError(Error):
    """A checkpoint is unreadable, corrupt, of another version, or contradicts itself."""

    exit_code = 3


class BundleError(Error):
    """A bundle is unreadable, corrupt or of another version."""

    exit_code = 3


class InputError(Error):
    """A file that a network should run on is unreadable or holds something else."""

    exit_code = 3


class BudgetError(Error):
    """The masks do not fit the budget."""

    exit_code = 4


class VerificationError(Error):
    """A compiled domain differs from its reference."""

    exit_code = 5


class UnsupportedGraphError(Error):
    """The graph holds something that cannot be compiled exactly.

    The message names the operator, the node and the reason.
    """

    exit_code = 6


class BackendUnavailableError(Error):
    """An engine, a target or a device that was asked for is not there.

    The message says what to install.
    """

    exit_code = 7
