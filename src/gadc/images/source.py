"""The index of a source: what is an image, where its bytes are, and what was left out and why."""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError

Kind = Literal["folder", "flat", "parquet", "wds", "list", "npz"]
LabelChoice = bool | Literal["auto"]
OnError = Literal["fail", "quarantine"]

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"]
)
SYSTEM_FILES = frozenset(["thumbs.db", "ehthumbs.db", "desktop.ini"])
MACOS_FOLDER = "__MACOSX"

HIDDEN = "hidden"
SYSTEM = "system file"
MACOS = "macOS resource"
NO_IMAGE_SUFFIX = "no image suffix"
NOT_REGULAR = "not a regular file"
N_EXAMPLES = 10
"""How many names an error lists."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One bad item, set aside.

    Attributes:
        path: Its id in the source.
        code: A `gadc.images.faults.FaultCode`.
        message: What was found.
        sha256: Digest of its bytes, where they could be read.
    """

    path: str
    code: str
    message: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """One file that is no candidate: hidden, another suffix, a device and the like."""

    path: str
    reason: str


class Reader(Protocol):
    """Where the bytes of image number `position` come from; safe to use from many threads."""

    def read(self, position: int) -> bytes:
        """Return the encoded bytes."""

    def path(self, position: int) -> str | None:
        """Return the path of the image's own file, None if it has none."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Every image of a source, by position; a column per property, so that a million is cheap.

    Attributes:
        source: What was scanned.
        kind: Its layout.
        ids: One stable name per image: the relative POSIX path (folder), the image's own path or
            `<file>#<row>` (parquet, npz), `<shard>/<member>` (tar), the line (list). Undecodable
            bytes of a name are kept as surrogate escapes.
        labels: Int64 [n] into `class_names`; None without labels.
        class_names: The classes, including those without an image.
        excluded: Files that are no candidates.
        quarantined: Bad items that the scan itself found.
        reader: Gives the bytes.
    """

    source: Path
    kind: Kind
    ids: list[str]
    labels: NDArray[np.int64] | None
    class_names: list[str]
    excluded: list[Excluded]
    quarantined: list[Quarantined]
    reader: Reader

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_scanned(self) -> int:
        """Number of items seen: images, excluded and quarantined; no item is two of them."""
        return len(self.ids) + len(self.excluded) + len(self.quarantined)

    def read(self, position: int) -> bytes:
        """Return the encoded bytes of an image, exactly as they were when it was scanned.

        Raises:
            ImageError: `changed`, `io_error`, `too_large`, or `not_an_image` where there are no
                bytes at all.
        """
        return self.reader.read(position)

    def path(self, position: int) -> str:
        """Return what a person opens: the file's path, or the id of an image inside an archive."""
        return self.reader.path(position) or self.ids[position]


def suffix(name: str) -> str:
    """Return the suffix in lower case with its dot, or nothing."""
    base = name.rsplit("/", 1)[-1]
    stem, dot, last = base.rpartition(".")
    return f".{last.lower()}" if dot and stem else ""


def reason_to_exclude(name: str) -> str | None:
    """Say why a relative path is no candidate, judging by its name alone; None if it is one."""
    *folders, base = name.split("/")
    if MACOS_FOLDER in folders:
        return MACOS
    if base.startswith(".") or any(folder.startswith(".") for folder in folders):
        return HIDDEN
    if base.lower() in SYSTEM_FILES:
        return SYSTEM
    return None if suffix(base) in IMAGE_SUFFIXES else NO_IMAGE_SUFFIX


def no_images(
    source: Path, excluded: Sequence[Excluded], quarantined: Sequence[Quarantined]
) -> InputError:
    """Build the error for a source without a single image; it says what was there instead."""
    reasons = collections.Counter(item.reason for item in excluded)
    reasons.update(f"bad: {item.code}" for item in quarantined)
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return InputError(
        "no_images",
        f"no images in {source} ({found or 'it is empty'}); images end in "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}, or lie in .parquet or .tar files",
    )


def examples(names: Iterable[str]) -> str:
    """List the first few names for an error message."""
    listed = list(names)
    text = ", ".join(repr(name) for name in listed[:N_EXAMPLES])
    left = len(listed) - N_EXAMPLES
    return f"{text} and {left} more" if left > 0 else text


def encode_labels(values: Sequence[int | str]) -> tuple[NDArray[np.int64], list[str]]:
    """Number the classes in order: integers by value, anything with a text among it as text.

    Returns:
        Labels, int64 [n], and the class names, sorted.
    """
    distinct = set(values)
    if all(isinstance(value, int) for value in distinct):
        names = [str(value) for value in sorted(distinct, key=int)]
    else:
        names = sorted({str(value) for value in distinct})
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.fromiter((numbers[str(value)] for value in values), np.int64, len(values))
    return labels, names
