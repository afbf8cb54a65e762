"""Folders: every file below is an image, excluded or quarantined, and no other source is taken."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gadc.images.index import ImageIndex, open_index
from image_sources import ODD_NAMES, PICTURE, input_error, make


def all_paths(index: ImageIndex) -> list[str]:
    left_out = [item.path for item in [*index.excluded, *index.quarantined]]
    return sorted([*index.ids, *left_out])


def walked(root: Path) -> list[str]:
    """Every file, and every link to a folder, found without gadc."""
    found = []
    for folder, below, names in os.walk(root):
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names + links]
    return sorted(found)


# Layouts and labels


def test_class_folders_give_labels_in_code_point_order(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "Cat/1.jpg", "train/1.jpg", "\u00e9/deep/er/1.jpg", "10/1.jpg")
    index = open_index(tmp_path)
    assert index.kind == "folder"
    assert index.class_names == ["10", "Cat", "cat", "train", "\u00e9"]
    assert index.labels is not None
    assert index.labels.dtype == np.int64
    assert index.labels.tolist() == [0, 1, 2, 3, 4]
    assert index.ids == [
        "10/1.jpg",
        "Cat/1.jpg",
        "cat/1.jpg",
        "train/1.jpg",
        "\u00e9/deep/er/1.jpg",
    ]


def test_class_without_images_keeps_its_label(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "c/1.jpg", ".git/1.jpg", "__MACOSX/1.jpg")
    (tmp_path / "b").mkdir()
    index = open_index(tmp_path)
    assert index.class_names == ["a", "b", "c"]
    assert index.labels is not None
    assert index.labels.tolist() == [0, 2]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    index = open_index(make(tmp_path, "2.jpg", "10.jpg", "1.PNG"))
    assert (index.kind, index.labels, index.class_names) == ("flat", None, [])
    assert index.ids == ["1.PNG", "10.jpg", "2.jpg"]
    assert index.path(0) == str(tmp_path / "1.PNG")
    assert len(index) == index.n_scanned == 3


def test_images_beside_class_folders_are_an_error_unless_labels_are_off(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "stray.jpg")
    message = input_error("mixed_layout", tmp_path)
    assert "stray.jpg" in message
    assert "cat/1.jpg" in message
    index = open_index(tmp_path, labels=False)
    assert (index.kind, index.labels) == ("flat", None)
    assert index.ids == ["cat/1.jpg", "stray.jpg"]


def test_labels_can_be_demanded_and_ignored(tmp_path: Path) -> None:
    make(tmp_path / "flat", "1.jpg")
    make(tmp_path / "classes", "cat/1.jpg")
    input_error("no_labels", tmp_path / "flat", labels=True)
    assert open_index(tmp_path / "classes", labels=True).kind == "folder"
    assert open_index(tmp_path / "classes", labels=False).kind == "flat"


def test_many_classes_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number:05d}/1.jpg" for number in range(500)))
    index = open_index(tmp_path)
    assert index.labels is not None
    assert index.labels.tolist() == list(range(500))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_name_works_as_file_and_as_class(tmp_path: Path, name: str) -> None:
    make(tmp_path / "files", name)
    make(tmp_path / "classes", f"{name}/1.jpg")
    index = open_index(tmp_path / "files")
    assert index.ids == [name]
    assert index.read(0) == PICTURE
    assert open_index(tmp_path / "classes").class_names == [name]


# Reconciliation


def random_tree(root: Path, seed: int) -> None:
    """Folders, images, other files, hidden things, links and pipes in random places."""
    generator = np.random.default_rng(seed)
    folders = [root]
    words = ["cat", "dog", ".git", "__MACOSX", "train", "x y", "\u00fc"]
    suffixes = [".jpg", ".PNG", ".txt", "", ".tiff", ".parquet", ".webp"]
    for number in range(60):
        folder = folders[generator.integers(len(folders))]
        word = f"{words[generator.integers(len(words))]}{number}"
        name = word + suffixes[generator.integers(len(suffixes))]
        kind = generator.integers(10)
        if kind < 2:
            folders.append(folder / (word if kind else word.rstrip("0123456789")))
            folders[-1].mkdir(exist_ok=True)
        elif kind == 2:
            (folder / name).symlink_to(folders[generator.integers(len(folders))])
        elif kind == 3:
            (folder / name).symlink_to("nowhere.jpg")
        elif kind == 4:
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(PICTURE)
    make(root, "always.jpg", "Thumbs.db", ".hidden.jpg", "._mac.jpg")


@pytest.mark.parametrize("seed", range(30))
def test_scanned_is_images_and_excluded_and_quarantined(tmp_path: Path, seed: int) -> None:
    random_tree(tmp_path, seed)
    index = open_index(tmp_path, labels=False)
    assert all_paths(index) == walked(tmp_path)
    assert index.n_scanned == len(walked(tmp_path))
    assert {index.read(position) for position in range(len(index))} == {PICTURE}


@pytest.mark.parametrize("seed", range(5))
def test_index_does_not_depend_on_the_order_on_disk(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_tree(tmp_path, seed)
    expected = open_index(tmp_path, labels=False)
    scandir, generator = os.scandir, np.random.default_rng(seed)

    @contextlib.contextmanager
    def shuffled(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as listing:
            entries = list(listing)
        yield (entries[number] for number in generator.permutation(len(entries)))

    monkeypatch.setattr("gadc.images.folder.os.scandir", shuffled)
    index = open_index(tmp_path, labels=False)
    assert index.ids == expected.ids
    assert index.excluded == expected.excluded
    assert index.quarantined == expected.quarantined


def test_reasons_are_named(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "a.txt", "Thumbs.db", ".x.jpg", ".d/2.jpg", "__MACOSX/._1.jpg", ".jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {item.path: item.reason for item in open_index(tmp_path).excluded}
    assert reasons == {
        "a.txt": "no image suffix",
        "Thumbs.db": "system file",
        ".x.jpg": "hidden",
        ".jpg": "hidden",
        ".d/2.jpg": "hidden",
        "__MACOSX/._1.jpg": "macOS resource",
        "pipe.jpg": "not a regular file",
    }


def test_unreadable_folder_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.jpg", "locked/1.jpg")
    scandir = os.scandir

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("gadc.images.folder.os.scandir", guarded)
    index = open_index(tmp_path)
    assert [(item.path, item.code) for item in index.quarantined] == [("locked", "io_error")]
    assert index.class_names == ["a", "locked"]


def test_nothing_in_the_source_is_changed(tmp_path: Path) -> None:
    random_tree(tmp_path, 3)

    def state() -> list[tuple[str, int, int]]:
        status = [(name, os.lstat(tmp_path / name)) for name in walked(tmp_path)]
        return [(name, each.st_mtime_ns, each.st_size) for name, each in status]

    before = state()
    index = open_index(tmp_path, labels=False)
    for position in range(len(index)):
        index.read(position)
    assert state() == before


# Links


def test_links_inside_are_read_once(tmp_path: Path) -> None:
    make(tmp_path, "b/1.jpg")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "b" / "link.jpg").symlink_to("1.jpg")
    os.link(tmp_path / "b" / "1.jpg", tmp_path / "b" / "hard.jpg")
    index = open_index(tmp_path)
    assert index.ids == ["b/1.jpg", "b/hard.jpg", "b/link.jpg"]
    assert index.class_names == ["b"]
    assert [item.path for item in index.excluded] == ["a", "b/up"]


def test_broken_links_and_links_to_themselves_are_quarantined(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    index = open_index(tmp_path)
    faults = [(item.path, item.code) for item in index.quarantined]
    assert faults == [("broken.jpg", "io_error"), ("loop.jpg", "io_error")]


@pytest.mark.parametrize("target", ["elsewhere", "elsewhere/2.jpg"])
def test_links_leading_out_are_followed_only_when_asked(tmp_path: Path, target: str) -> None:
    make(tmp_path, "root/a/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "elsewhere" / "back").symlink_to("../root")
    link = tmp_path / "root" / "a" / ("out" if target == "elsewhere" else "out.jpg")
    link.symlink_to(tmp_path / target)
    assert link.name in input_error("link_outside", tmp_path / "root")
    index = open_index(tmp_path / "root", follow_outside=True)
    assert len(index) == 2
    assert [index.read(position) for position in range(2)] == [PICTURE] * 2


def test_folder_may_be_named_by_a_link(tmp_path: Path) -> None:
    make(tmp_path, "real/a/1.jpg")
    (tmp_path / "link").symlink_to("real")
    assert open_index(tmp_path / "link").ids == ["a/1.jpg"]


# Sources that are none


def test_missing_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("nothing", "broken", "nothing/below", "nul\0"):
        assert name in input_error("missing_source", tmp_path / name)


def test_source_without_images_says_what_it_has(tmp_path: Path) -> None:
    assert "empty" in input_error("no_images", tmp_path)
    make(tmp_path, "a.txt", "b.csv", ".c.jpg")
    (tmp_path / "d.jpg").symlink_to("nowhere")
    message = input_error("no_images", tmp_path)
    assert "2 no image suffix" in message
    assert "1 hidden" in message
    assert "1 bad: io_error" in message


@pytest.mark.parametrize("name", ["one.jpg", "data.csv", "shard.tar.gz", "weights.pt"])
def test_unknown_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    input_error("unknown_source", make(tmp_path, name) / name)


def test_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    input_error("unknown_source", tmp_path / "pipe.txt")


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    input_error("bad_choice", tmp_path, labels="yes")
    input_error("bad_choice", tmp_path, on_error="ignore")
    input_error("no_columns", tmp_path, image_column="image")


def test_images_win_over_archives_beside_them(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "metadata.parquet", "old.tar")
    index = open_index(tmp_path)
    assert index.ids == ["a/1.jpg"]
    assert [item.path for item in index.excluded] == ["metadata.parquet", "old.tar"]


def test_archives_of_two_kinds_are_refused(tmp_path: Path) -> None:
    input_error("mixed_layout", make(tmp_path, "a.parquet", "b.tar"))


def test_archive_that_is_a_broken_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to("nowhere")
    assert "a.parquet" in input_error("unreadable_source", tmp_path)
