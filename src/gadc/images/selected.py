"""Selected images read again, each compared with what it was when it was selected."""

import hashlib
from collections.abc import Sequence

from gadc.errors import InputError
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex, examples


class SelectedImages:
    """The images of a selection in a source, by row of the selection.

    Args:
        index: The source.
        ids: Which of its images, in the order of the rows.
        sha256: Digest of each at the selection; None where it is not known.

    Attributes:
        n_verified: Images read so far whose bytes have their digest.
        changed: Ids of those that were read and have another one.

    Raises:
        InputError: `source_mismatch`: the source lacks some of them.
    """

    def __init__(self, index: ImageIndex, ids: Sequence[str], sha256: Sequence[str | None]) -> None:
        self.index, self.ids = index, ids
        self._sha256 = sha256
        self._positions = positions_of(index, ids)
        self.n_verified = 0
        self.changed: list[str] = []

    def __len__(self) -> int:
        return len(self.ids)

    def peek(self, row: int) -> bytes:
        """Return the bytes of an image as they are, to look at them only.

        Raises:
            InputError: `source_changed`: it can't be read any more.
        """
        position = self._positions[row]
        try:
            return self.index.read(position)
        except ImageError as error:
            raise InputError(
                "source_changed",
                f"{self.index.ids[position]}: {error.message}; restore it, or select again",
            ) from error

    def read(self, row: int) -> bytes | None:
        """Return the bytes of an image; None, and a note in `changed`, if it is another one.

        Raises:
            InputError: `source_changed`: it can't be read any more.
        """
        content = self.peek(row)
        expected = self._sha256[row]
        if expected is not None:
            if hashlib.sha256(content).hexdigest() != expected:
                self.changed.append(self.ids[row])
                return None
            self.n_verified += 1
        return content

    def path(self, row: int) -> str:
        """Return the path of the image's own file."""
        return self.index.path(self._positions[row])

    def raise_if_changed(self) -> None:
        """Raise the error that names the images found changed.

        Raises:
            InputError: `source_changed`.
        """
        if self.changed:
            raise InputError(
                "source_changed",
                f"{len(self.changed)} images are not the ones that were selected: "
                f"{examples(self.changed)}; select again, or restore them",
            )


def positions_of(index: ImageIndex, ids: Sequence[str]) -> list[int]:
    """Return where each image stands in the source.

    Raises:
        InputError: `source_mismatch`: the source lacks some of them.
    """
    wanted = set(ids)
    places = {name: place for place, name in enumerate(index.ids) if name in wanted}
    if missing := [name for name in ids if name not in places]:
        raise InputError(
            "source_mismatch",
            f"{index.source} lacks {len(missing)} of the {len(ids)} selected images: "
            f"{examples(missing)}; give the source they were selected from",
        )
    return [places[name] for name in ids]
