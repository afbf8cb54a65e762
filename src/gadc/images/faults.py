"""What can be wrong with one image; such an image is set aside and the run goes on."""

from typing import Literal

from gadc.errors import InputError

FaultCode = Literal[
    "animated",
    "changed",
    "decode_failed",
    "format_not_allowed",
    "io_error",
    "missing_label",
    "not_an_image",
    "too_large",
    "too_small",
    "truncated",
    "unsafe_member",
    "unsupported_mode",
]


class ImageError(Exception):
    """One image can't be used; it becomes a row of the quarantine list, not the end of a run.

    Attributes:
        code: Stable identifier, one of `FaultCode`.
        message: What was found, the bound it breaks and what to do.
    """

    def __init__(self, code: FaultCode, message: str) -> None:
        super().__init__(message)
        self.code: FaultCode = code
        self.message = message

    def __reduce__(self) -> tuple[type["ImageError"], tuple[FaultCode, str]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.code, self.message)


def bad_image(name: str, error: ImageError) -> InputError:
    """Return what ends a run that can't go on without the image `name`."""
    return InputError("bad_image", f"{name}: {error.code}: {error.message}; remove or repair it")
