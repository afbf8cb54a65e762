"""A folder of image files, with a folder per class or without."""

import functools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gadc.errors import InputError
from gadc.images.files import FileReader, Stamp, with_retries
from gadc.images.source import (
    NO_IMAGE_SUFFIX,
    NOT_REGULAR,
    Excluded,
    ImageIndex,
    LabelChoice,
    Quarantined,
    examples,
    no_images,
    reason_to_exclude,
    suffix,
)

LINKED_FOLDER = "link to a folder that is read already"
ARCHIVE_SUFFIXES = frozenset([".parquet", ".tar"])
ANY_IMAGE = "x.jpg"
"""A file name that is a candidate, to ask about the folders it would lie in."""


@dataclass
class FolderScan:
    """Everything below a folder, each list sorted by path whatever the order on disk."""

    root: Path
    images: list[tuple[str, Stamp]] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    top_folders: list[str] = field(default_factory=list)


def scan_folder(root: Path, *, follow_outside: bool = False) -> FolderScan:
    """Find every file below `root`.

    Real folders are read first, so that a link to one of them never takes its place; then links
    to folders elsewhere, each folder once: loops end.

    Args:
        root: An existing folder.
        follow_outside: Read through links that lead out of `root`; otherwise they are an error.

    Raises:
        InputError: The folder can't be read, or a link leads out of it.
    """
    walker = _Walker(root, follow_outside=follow_outside)
    walker.walk()
    return walker.scan


def index_folder(scan: FolderScan, *, labels: LabelChoice = "auto") -> ImageIndex:
    """Build the index of a scanned folder; the first folder on an image's path is its class.

    Raises:
        InputError: No images; some images in class folders and some beside them; or labels asked
            for where there are no class folders.
    """
    archives = [Excluded(name, NO_IMAGE_SUFFIX) for name in scan.archives]
    excluded = sorted([*scan.excluded, *archives], key=lambda item: item.path)
    if not scan.images:
        raise no_images(scan.root, excluded, scan.quarantined)
    ids = [name for name, _ in scan.images]
    reader = FileReader(
        os.fspath(scan.root),
        ids,
        np.fromiter((stamp.n_bytes for _, stamp in scan.images), np.int64, len(ids)),
        np.fromiter((stamp.mtime_ns for _, stamp in scan.images), np.int64, len(ids)),
    )
    outside = [name for name in ids if "/" not in name]
    if labels and outside:
        if len(outside) < len(ids):
            inside = next(name for name in ids if "/" in name)
            raise InputError(
                "mixed_layout",
                f"{scan.root} has images beside its class folders ({outside[0]!r} and "
                f"{inside!r}); move them, or ask for no labels",
            )
        if labels is True:
            raise InputError(
                "no_labels", f"{scan.root} has no class folders; ask for no labels instead"
            )
    rest = (excluded, scan.quarantined, reader)
    if not labels or outside:
        return ImageIndex(scan.root, "flat", ids, None, [], *rest)
    numbers = {name: number for number, name in enumerate(scan.top_folders)}
    classes = (numbers[name.split("/", 1)[0]] for name in ids)
    class_of = np.fromiter(classes, np.int64, len(ids))
    return ImageIndex(scan.root, "folder", ids, class_of, scan.top_folders, *rest)


class _Walker:
    def __init__(self, root: Path, *, follow_outside: bool) -> None:
        self.scan = FolderScan(root)
        self.real_root = os.path.realpath(root)
        self.follow_outside = follow_outside
        self.visited: set[tuple[int, int]] = set()
        self.folder_links: list[str] = []
        self.leading_out: list[str] = []

    def walk(self) -> None:
        scan = self.scan
        try:
            _list_entries(os.fspath(scan.root))
        except OSError as error:
            raise InputError(
                "unreadable_source", f"can't read {scan.root}: {error.strerror}"
            ) from error
        self.read_tree("")
        while self.folder_links:
            links, self.folder_links = sorted(self.folder_links), []
            for name in links:
                self.follow_folder_link(name)
        if self.leading_out:
            raise InputError(
                "link_outside",
                f"links lead out of {scan.root}: {examples(sorted(self.leading_out))}; "
                "copy what they point to, or allow it with follow_outside",
            )
        scan.images.sort()
        scan.archives.sort()
        scan.excluded.sort(key=lambda item: item.path)
        scan.quarantined.sort(key=lambda item: item.path)
        scan.top_folders.sort()

    def read_tree(self, top: str) -> None:
        """Read a folder and the real folders below it."""
        pending = [top]
        while pending:
            folder = pending.pop()
            path = self.absolute(folder)
            try:
                status = os.stat(path)
                entries = with_retries(functools.partial(_list_entries, path))
            except OSError as error:
                self.quarantine(folder, error)
                continue
            if (status.st_dev, status.st_ino) in self.visited:
                self.scan.excluded.append(Excluded(folder, LINKED_FOLDER))
                continue
            self.visited.add((status.st_dev, status.st_ino))
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    self.note_top_folder(name)
                    pending.append(name)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    self.folder_links.append(name)
                else:
                    self.sort_file(name, is_link=entry.is_symlink())

    def sort_file(self, name: str, *, is_link: bool) -> None:
        is_archive = suffix(name) in ARCHIVE_SUFFIXES
        reason = reason_to_exclude(name)
        if reason and not (is_archive and reason == NO_IMAGE_SUFFIX):
            self.scan.excluded.append(Excluded(name, reason))
            return
        try:
            status = with_retries(functools.partial(os.stat, self.absolute(name)))
        except OSError as error:
            self.quarantine(name, error)
            return
        if not stat.S_ISREG(status.st_mode):
            self.scan.excluded.append(Excluded(name, NOT_REGULAR))
        elif is_link and not self.may_follow(name):
            self.leading_out.append(name)
        elif is_archive:
            self.scan.archives.append(name)
        else:
            self.scan.images.append((name, Stamp.of(status)))

    def follow_folder_link(self, name: str) -> None:
        if reason := reason_to_exclude(f"{name}/{ANY_IMAGE}"):
            self.scan.excluded.append(Excluded(name, reason))
        elif self.is_inside(name):
            self.scan.excluded.append(Excluded(name, LINKED_FOLDER))
        elif not self.follow_outside:
            self.leading_out.append(name)
        else:
            self.note_top_folder(name)
            self.read_tree(name)

    def may_follow(self, name: str) -> bool:
        return self.follow_outside or self.is_inside(name)

    def is_inside(self, name: str) -> bool:
        target = os.path.realpath(self.absolute(name))
        return os.path.commonpath([target, self.real_root]) == self.real_root

    def note_top_folder(self, name: str) -> None:
        if "/" not in name and reason_to_exclude(f"{name}/{ANY_IMAGE}") is None:
            self.scan.top_folders.append(name)

    def quarantine(self, name: str, error: OSError) -> None:
        what = "broken link" if os.path.islink(self.absolute(name)) else "can't be read"
        self.scan.quarantined.append(
            Quarantined(name, "io_error", f"{what}: {error.strerror or error}")
        )

    def absolute(self, name: str) -> str:
        return os.path.join(self.scan.root, name)


def _list_entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return list(listing)
