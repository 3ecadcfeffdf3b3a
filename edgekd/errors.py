"""The exceptions a user can meet, and the exit code each one ends a command with.

Every message is one paragraph: what was expected, what was found and where; `hint` says what to do next. Foreign
exceptions are wrapped with `raise ... from err`, so the cause stays visible under `--verbose`.
"""

from __future__ import annotations

from typing import ClassVar


class EdgekdError(Exception):
    """Base of all errors that edgekd raises on purpose.

    Args:
        message: What was expected, what was received, and where.
        hint: What the reader can do about it; shown on a line of its own.

    Attributes:
        node: Of the graph, where it was raised; set by the runner.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.node: str | None = None

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UserError(EdgekdError):
    """A wrong path, flag, key, shape or file: the command cannot start as it was written."""

    exit_code = 2


class DeviceUnavailable(EdgekdError):
    """The device, driver or runtime that the work needs is not at hand."""

    exit_code = 3


class BuildFailed(EdgekdError):
    """A conversion, export, quantization or engine build did not produce a valid artifact."""

    exit_code = 4


class GateFailed(EdgekdError):
    """The artifact exists, and misses its budget."""

    exit_code = 1


class Inconclusive(EdgekdError):
    """The measurement cannot answer the question: too noisy, wrong device, or only predicted."""

    exit_code = 5


INTERNAL_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143
