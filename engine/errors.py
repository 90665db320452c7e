"""Errors that a user can act on.

Every one carries a message of one line (what, where, what to do) and the exit code of the commands.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base class: commands print ``error: <message>`` and leave with :attr:`exit_code`, never a traceback."""

    exit_code = 2


class ConfigurationError(EngineError, ValueError):
    """An option, a file or an argument that cannot be used."""


class MissingDataError(EngineError, FileNotFoundError):
    """A data set that is not where it was looked for."""

    exit_code = 3

    __str__ = Exception.__str__


class NumericalError(EngineError, ArithmeticError):
    """A computation that left the finite numbers."""

    exit_code = 4


class Preempted(EngineError):
    """SIGTERM or SIGUSR1 arrived, or the group of ranks ended: the work is saved and can be resumed."""

    exit_code = 75


class Interrupted(EngineError):
    """SIGINT arrived: the work is saved and can be resumed."""

    exit_code = 130
