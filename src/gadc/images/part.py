"""Some images of a source as a source of their own, verified while they are read."""

import dataclasses
import hashlib
from collections.abc import Sequence

from gadc.errors import InputError
from gadc.images.faults import ImageError
from gadc.images.selected import positions_of
from gadc.images.source import ImageIndex


def part_of(index: ImageIndex, ids: Sequence[str], sha256: Sequence[str | None]) -> ImageIndex:
    """Return the index of some images; reading one that has changed since is an error.

    Args:
        index: The source.
        ids: Which of its images, in the order wanted.
        sha256: Digest of the bytes that each must have; None where it is not known.

    Raises:
        InputError: `source_mismatch`: the source lacks some of them. Reading raises
            `source_changed`.
    """
    positions = positions_of(index, ids)
    return dataclasses.replace(
        index,
        ids=list(ids),
        labels=None,
        class_names=[],
        excluded=[],
        quarantined=[],
        reader=_PartReader(index, positions, list(sha256)),
    )


class _PartReader:
    def __init__(self, index: ImageIndex, positions: list[int], sha256: list[str | None]) -> None:
        self._index, self._positions, self._sha256 = index, positions, sha256

    def read(self, position: int) -> bytes:
        place = self._positions[position]
        name = self._index.ids[place]
        try:
            content = self._index.read(place)
        except ImageError as error:
            raise InputError(
                "source_changed", f"{name}: {error.message}; restore it, or select again"
            ) from error
        expected = self._sha256[position]
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise InputError(
                "source_changed",
                f"{name} is not the image that was selected; restore it, or select again",
            )
        return content

    def path(self, position: int) -> str | None:
        return self._index.reader.path(self._positions[position])
