"""What the images of an export are called: close to their own names, and safe for every reader."""

from collections.abc import Sequence

from gadc.images.selected import SelectedImages
from gadc.images.source import IMAGE_SUFFIXES, suffix
from gadc.images.structure import identify
from gadc.portable_names import comparable, portable_name
from gadc.subset import Subset

SAME_SUFFIX = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tif": ".tiff"}
"""Suffixes of one format, by the one that the most readers know."""


def class_folders(
    subset: Subset, *, prefix: str = "", reserved: Sequence[str] = ()
) -> dict[str, str]:
    """Return a folder name for each class name, `prefix` in front; none is a `reserved` one."""
    taken = {comparable(name) for name in reserved}
    names = dict.fromkeys(subset.class_name)
    return {name: portable_name(prefix + name, taken=taken) for name in names}


def file_names(subset: Subset, images: SelectedImages, folders: dict[str, str]) -> list[str]:
    """Return the place of each image, `<folder of its class>/<its own name>`."""
    taken: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    names = []
    for row, (path, class_name) in enumerate(zip(subset.paths, subset.class_name, strict=True)):
        base = _base(path)
        if not suffix(base):  # a row of a parquet file: the bytes know their format
            base += suffix_of_bytes(images, row)
        folder = folders[class_name]
        names.append(f"{folder}/{portable_name(base, taken=taken[folder], identity=path)}")
    return names


def unique_stems(subset: Subset, folders: Sequence[str], *, with_class: bool = False) -> list[str]:
    """Return the place of each image without a suffix, unique in its folder without one.

    For readers that join an image and its label by the name before the suffix: there, `1.jpg` and
    `1.png` are the same.

    Args:
        subset: The images.
        folders: Where each goes.
        with_class: Put the name of its class in front, where all go to one folder.
    """
    taken: dict[str, set[str]] = {folder: set() for folder in folders}
    stems = []
    for path, folder, name in zip(subset.paths, folders, subset.class_name, strict=True):
        base = _base(path)
        # Only known suffixes go: `img.0001` is a name.
        stem = base[: -len(suffix(base))] if suffix(base) in IMAGE_SUFFIXES else base
        if with_class:
            stem = f"{name}-{stem}"
        # A dot left in it would be the start of a suffix for some readers.
        stem = stem.replace(".", "_")
        stems.append(f"{folder}/{portable_name(stem, taken=taken[folder], identity=path)}")
    return stems


def common_suffixes(subset: Subset, images: SelectedImages) -> list[str]:
    """Return each image's suffix in its most common spelling, such as `.jpg` for `.JPEG`."""
    suffixes = []
    for row, path in enumerate(subset.paths):
        own = suffix(path)
        if own not in IMAGE_SUFFIXES:
            own = suffix_of_bytes(images, row)
        suffixes.append(SAME_SUFFIX.get(own, own))
    return suffixes


def suffix_of_bytes(images: SelectedImages, row: int) -> str:
    """Return the suffix that the bytes of an image ask for; `.bin` if they are none."""
    return f".{(identify(images.peek(row)) or 'bin').lower()}"


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]
