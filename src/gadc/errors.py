"""Errors and warnings, each with a stable code that scripts may test."""


class GadcError(Exception):
    """Base of everything gadc raises on purpose.

    Attributes:
        code: Stable identifier, such as `features_not_finite`; see `docs/reference/errors.md`.
        exit_code: What the command line exits with.
    """

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["GadcError"], tuple[str, str]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.code, self.message)


class InputError(GadcError, ValueError):
    """The input can't be used; the message names the value, the bound and the remedy."""

    exit_code = 2


class MissingExtraError(InputError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


class RunError(GadcError, RuntimeError):
    """Good input, but the run could not finish (disk full, lock held, corrupt artefact)."""


class ConvergenceWarning(UserWarning):
    """A solver stopped at its iteration limit; the result says how far it was."""
