"""What can go wrong, as classes that a caller may catch; each message says what was expected and what was found."""

from __future__ import annotations


class RuntimeFailure(Exception):
    """Base of all errors of this package.

    Args:
        message: What was expected, what was found, where.
        hint: What to do about it.

    Attributes:
        exit_code: Of the command line; the same numbers as edgekd's.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message, self.hint = message, hint


class BundleError(RuntimeFailure):
    """The bundle is missing, cut off, altered, unsafe to unpack, or of a format that this version does not read."""


class ImageError(RuntimeFailure):
    """An image cannot be read, or an array is not what the model takes."""


class EngineError(RuntimeFailure):
    """No engine of the bundle works here, or the one that was asked for does not."""

    exit_code = 3


class FallbackWarning(UserWarning):
    """Another engine or runtime than the bundle's first choice is used; an `EngineError` with `strict=True`."""


class Unusable(Exception):
    """Why one engine cannot be used in one runtime here, a clause without a full stop. Never leaves this package.

    Args:
        reason: The clause.
        hint: What would change that; empty when nothing would.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason} ({hint})" if hint else reason)
        self.reason, self.hint = reason, hint
