"""Files and lists: an image's bytes are the ones that were scanned, or there is an error."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gadc.images import files
from gadc.images.decode import ImageError
from gadc.images.index import ImageIndex, open_index
from image_sources import ODD_NAMES, PICTURE, input_error, make


def image_error(index: ImageIndex, position: int = 0) -> str:
    with pytest.raises(ImageError) as caught:
        index.read(position)
    return caught.value.code


# Reading


def overwrite(path: Path) -> None:
    path.write_bytes(PICTURE[::-1])
    os.utime(path, ns=(1, 1))


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda path: path.write_bytes(PICTURE * 2),
    "other content": overwrite,
    "touched": lambda path: os.utime(path, ns=(5, 5)),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "folder gone": lambda path: shutil.rmtree(path.parent),
    "pipe": become_pipe,
}


@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changed_since_the_scan_is_not_read(tmp_path: Path, change: str) -> None:
    index = open_index(make(tmp_path, "a/1.jpg"))
    CHANGES[change](tmp_path / "a" / "1.jpg")
    assert image_error(index) == "changed"


def test_empty_file_is_read_as_nothing(tmp_path: Path) -> None:
    assert open_index(make(tmp_path, "1.jpg", content=b"")).read(0) == b""


def test_enormous_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(files.MAX_IMAGE_BYTES + 1)  # sparse: takes no room on disk
    assert image_error(open_index(tmp_path)) == "too_large"


def failing(n_times: int, number: int) -> Callable[..., bytes]:
    pread, calls = os.pread, iter(range(1000))

    def read(*arguments: int) -> bytes:
        if next(calls) < n_times:
            raise OSError(number, os.strerror(number))
        return pread(*arguments)

    return read


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_flaky_disk_is_tried_again(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(make(tmp_path, "1.jpg"))
    monkeypatch.setattr(files, "RETRY_WAITS_SECONDS", (0, 0, 0))
    monkeypatch.setattr("gadc.images.files.os.pread", failing(3, number))
    assert index.read(0) == PICTURE
    monkeypatch.setattr("gadc.images.files.os.pread", failing(4, number))
    assert image_error(index) == "io_error"


def test_forbidden_file_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(make(tmp_path, "1.jpg"))
    monkeypatch.setattr("gadc.images.files.os.pread", failing(1, errno.EACCES))
    assert image_error(index) == "io_error"


def test_reading_from_many_threads_gives_each_image_its_bytes(tmp_path: Path) -> None:
    for number in range(50):
        make(tmp_path, f"{number:02d}.jpg", content=b"%d" % number)
    index = open_index(tmp_path)
    barrier = threading.Barrier(8)

    def read_all(_: int) -> list[bytes]:
        barrier.wait()
        return [index.read(position) for position in range(50)]

    with ThreadPoolExecutor(8) as pool:
        for contents in pool.map(read_all, range(8)):
            assert contents == [b"%d" % number for number in range(50)]


# Lists


def write_list(folder: Path, content: bytes) -> Path:
    (folder / "list.txt").write_bytes(content)
    return folder / "list.txt"


def test_list_keeps_its_order_and_resolves_against_its_folder(tmp_path: Path) -> None:
    make(tmp_path, "b/2.jpg", "a/1.png")
    absolute = os.fsencode(tmp_path / "a" / "1.png")
    index = open_index(write_list(tmp_path, b"b/2.jpg\r\n\n" + absolute + b"\n"))
    assert index.kind == "list"
    assert index.ids == ["b/2.jpg", str(tmp_path / "a" / "1.png")]
    assert index.path(0) == str(tmp_path / "b" / "2.jpg")
    assert index.read(1) == PICTURE
    assert index.labels is None


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_list_separated_by_nul_holds_any_name(tmp_path: Path, end: bytes) -> None:
    make(tmp_path, *ODD_NAMES)
    content = b"\0".join(os.fsencode(name) for name in ODD_NAMES) + end
    index = open_index(write_list(tmp_path, content))
    assert index.ids == list(ODD_NAMES)
    assert {index.read(position) for position in range(len(index))} == {PICTURE}


def test_list_names_every_duplicate(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    message = input_error(
        "duplicate_paths", write_list(tmp_path, b"1.jpg\n2.jpg\n1.jpg\n./3.jpg\n3.jpg\n")
    )
    assert "'1.jpg', '3.jpg'" in message
    assert "2.jpg" not in message


def test_list_is_reconciled(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "notes.txt", "folder.jpg/x")
    index = open_index(write_list(tmp_path, b"1.jpg\nnotes.txt\nfolder.jpg\ngone.jpg"))
    assert index.ids == ["1.jpg"]
    assert [item.reason for item in index.excluded] == ["no image suffix", "not a regular file"]
    assert [(item.path, item.code) for item in index.quarantined] == [("gone.jpg", "io_error")]
    assert index.n_scanned == 4


def test_list_without_images_or_with_labels_asked_for_is_refused(tmp_path: Path) -> None:
    input_error("no_images", write_list(tmp_path, b"\n\n"))
    input_error("no_images", write_list(tmp_path, b"gone.jpg\n"))
    input_error("no_labels", write_list(tmp_path, b"1.jpg\n"), labels=True)
