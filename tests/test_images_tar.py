"""Tar shards: every member accounted for, none extracted, no cut unnoticed."""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadc.errors import GadcError, InputError
from gadc.images.decode import ImageError
from gadc.images.index import ImageIndex, open_index

Member = tuple[str | tarfile.TarInfo, bytes]
SAMPLES: list[Member] = [
    (f"{number:03d}.{extension}", b"%s %d" % (extension.encode(), number))
    for number in range(12)
    for extension in ("cls", "jpg", "txt")
]
LABELLED: list[Member] = [
    (name, b"%d" % (int(str(name)[:3]) % 3) if str(name).endswith("cls") else content)
    for name, content in SAMPLES
]


def write_tar(
    path: Path, members: Iterable[Member], tar_format: Literal[0, 1, 2] = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format, errors="surrogateescape") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(index: ImageIndex) -> dict[str, bytes]:
    return {name: index.read(position) for position, name in enumerate(index.ids)}


def input_error(code: str, source: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_index(source, **options)  # type: ignore[arg-type]
    assert caught.value.code == code, caught.value
    return caught.value.message


def faults(index: ImageIndex) -> dict[str, str]:
    return {item.path: item.code for item in index.quarantined}


# What is read


def test_shards_of_a_folder_are_joined_in_order(tmp_path: Path) -> None:
    write_tar(tmp_path / "b" / "1.tar", LABELLED[:6])
    write_tar(tmp_path / "a.tar", LABELLED[6:12])
    (tmp_path / "README.md").write_text("about")
    index = open_index(tmp_path)
    assert index.kind == "wds"
    assert index.ids == ["a.tar/002.jpg", "a.tar/003.jpg", "b/1.tar/000.jpg", "b/1.tar/001.jpg"]
    assert index.labels is not None
    assert [index.class_names[label] for label in index.labels] == ["2", "0", "0", "1"]
    assert index.path(0) == "a.tar/002.jpg"
    assert contents(index)["b/1.tar/001.jpg"] == b"jpg 1"
    assert [item.path for item in index.excluded] == ["README.md"]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize(
    "name",
    [
        "short.png",
        "./dotted.png",
        "deep/" * 20 + "x.png",
        "d" * 90 + "/" + "n" * 60 + ".png",
        "\u00e9e\u0301\U0001f600.png",
        "new\nline tab\t*?[a]'\".png",
        os.fsdecode(b"\xff\xfe.png"),
    ],
)
def test_names_and_bytes_equal_those_of_tarfile(
    tmp_path: Path, name: str, tar_format: Literal[0, 1, 2]
) -> None:
    path = write_tar(tmp_path / "s.tar", [(name, b"x" * 700), ("last.png", b"y")], tar_format)
    with tarfile.open(path, errors="surrogateescape") as archive:
        expected = {
            f"s.tar/{member.name.removeprefix('./')}": archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
        }
    assert contents(open_index(path)) == expected


def test_long_names_of_gnu_and_pax_are_whole(tmp_path: Path) -> None:
    name = "n" * 240 + ".png"
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "s.tar", [(name, b"x")], tar_format)
        assert open_index(path).ids == [f"s.tar/{name}"]


def test_every_member_is_an_image_its_sidecar_or_left_out(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a.jpg", b"1"),
        ("a.cls", b"0"),
        ("a.mask.png", b"2"),
        ("b.seg.png", b"3"),
        ("b.cls", b"1"),
        ("alone.txt", b"4"),
        ("no-suffix", b"5"),
        ("._mac.jpg", b"6"),
        ("__MACOSX/x.jpg", b"7"),
        (entry("folder", tarfile.DIRTYPE), b""),
        (entry("link.jpg", tarfile.SYMTYPE, "a.jpg"), b""),
    ]
    index = open_index(write_tar(tmp_path / "s.tar", members))
    assert index.ids == ["s.tar/a.jpg", "s.tar/b.seg.png"]
    assert {item.path: item.reason for item in index.excluded} == {
        "s.tar/a.mask.png": "further image of a sample",
        "s.tar/alone.txt": "belongs to no image",
        "s.tar/no-suffix": "no image suffix",
        "s.tar/._mac.jpg": "hidden",
        "s.tar/__MACOSX/x.jpg": "macOS resource",
    }
    assert faults(index) == {"s.tar/link.jpg": "unsafe_member"}
    n_sidecars, n_folders = 2, 1
    assert index.n_scanned == len(members) - n_sidecars - n_folders


# Labels


@pytest.mark.parametrize(
    ("extension", "first", "second", "names"),
    [
        ("cls", b"10", b"9\n", ["9", "10"]),
        ("cls", b"dog", b"cat", ["cat", "dog"]),
        ("cls", b"10", b"cat", ["10", "cat"]),
        ("json", b'{"label": 10}', b'{"label": 9, "x": []}', ["9", "10"]),
        ("json", b'{"class_name": "dog"}', b'{"cls": "</script>"}', ["</script>", "dog"]),
    ],
)
def test_labels_come_from_cls_and_json(
    tmp_path: Path, extension: str, first: bytes, second: bytes, names: list[str]
) -> None:
    members: list[Member] = [("a.png", b"1"), (f"a.{extension}", first)]
    members += [("b.png", b"2"), (f"b.{extension}", second)]
    index = open_index(write_tar(tmp_path / "s.tar", members))
    assert index.class_names == names
    assert index.labels is not None
    given = [value.decode().strip() for value in (first, second)]
    if extension == "cls":
        assert [names[label] for label in index.labels] == given


def test_json_without_a_label_is_none(tmp_path: Path) -> None:
    members: list[Member] = [("a.png", b"1"), ("a.json", b'{"text": "a caption"}')]
    path = write_tar(tmp_path / "s.tar", members)
    assert open_index(path).labels is None
    input_error("no_labels", path, labels=True)


def test_labels_can_be_ignored(tmp_path: Path) -> None:
    members: list[Member] = [("a.png", b"1"), ("a.cls", b"\xff"), ("b.png", b"2")]
    index = open_index(write_tar(tmp_path / "s.tar", members), labels=False)
    assert (len(index), index.labels) == (2, None)


@pytest.mark.parametrize(
    ("extension", "content"),
    [
        ("cls", b""),
        ("cls", b"-1"),
        ("cls", b"\xff\xfe"),
        ("cls", b"1" * (2 << 20)),
        ("json", b'{"label": true}'),
        ("json", b'{"label": 1.5}'),
        ("json", b'{"label": null}'),
        ("json", b'{"label": ["cat"]}'),
        ("json", b'{"label":'),
        ("json", b"[" * 100_000),
        (None, b""),
    ],
)
def test_label_that_is_missing_or_none_is_an_error_or_quarantined(
    tmp_path: Path, extension: str | None, content: bytes
) -> None:
    members: list[Member] = [("good.png", b"1"), ("good.cls", b"7"), ("bad.png", b"2")]
    if extension:
        members.append((f"bad.{extension}", content))
    path = write_tar(tmp_path / "s.tar", members)
    assert "s.tar/bad.png" in input_error("missing_label", path)
    index = open_index(path, on_error="quarantine")
    assert index.ids == ["s.tar/good.png"]
    assert faults(index) == {"s.tar/bad.png": "missing_label"}


def test_members_that_are_not_adjacent_are_an_error_or_quarantined(tmp_path: Path) -> None:
    members: list[Member] = [("a.png", b"1"), ("b.png", b"2"), ("a.cls", b"0"), ("b.txt", b"3")]
    path = write_tar(tmp_path / "s.tar", [*members, ("c.png", b"4"), ("c.cls", b"1")])
    assert "not adjacent" in input_error("unsafe_member", path)
    index = open_index(path, on_error="quarantine")
    assert index.ids == ["s.tar/c.png"]
    assert faults(index) == {"s.tar/a.png": "unsafe_member", "s.tar/b.png": "unsafe_member"}


# Hostile and damaged archives


def hostile_members() -> list[tuple[str, Member]]:
    sparse = entry("sparse.jpg", tarfile.GNUTYPE_SPARSE)
    paths = ["../up.jpg", "a/../../up.jpg", "/absolute.jpg", "..\\up.jpg", "C:\\x.jpg", "//x/y.jpg"]
    members: list[Member] = [(path, b"payload") for path in paths]
    members += [
        (entry("symlink.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (entry("hardlink.jpg", tarfile.LNKTYPE, "../../x"), b""),
        (entry("pipe.jpg", tarfile.FIFOTYPE), b""),
        (entry("null.jpg", tarfile.CHRTYPE), b""),
        (entry("disk.jpg", tarfile.BLKTYPE), b""),
        (entry("strange.jpg", b"Z"), b""),
        (entry("../folder", tarfile.DIRTYPE), b""),
        (sparse, b""),
        ("good.jpg", b"an impostor of the same name"),
    ]
    return [
        (info.name if isinstance(info, tarfile.TarInfo) else info, (info, body))
        for info, body in members
    ]


@pytest.mark.parametrize(("name", "member"), hostile_members(), ids=lambda value: str(value)[:20])
def test_hostile_member_is_quarantined_and_nothing_is_written(
    tmp_path: Path, name: str, member: Member
) -> None:
    folder = tmp_path / "inner" / "data"
    write_tar(folder / "s.tar", [("good.jpg", b"good"), member, ("next.jpg", b"next")])
    before = sorted(tmp_path.rglob("*"))
    index = open_index(folder)
    assert contents(index) == {"s.tar/good.jpg": b"good", "s.tar/next.jpg": b"next"}
    assert [item.code for item in index.quarantined] == ["unsafe_member"]
    assert index.quarantined[0].path.rstrip("/") == f"s.tar/{name}"
    assert sorted(tmp_path.rglob("*")) == before


def test_no_cut_of_an_archive_is_unnoticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", LABELLED)
    content = path.read_bytes()
    whole = open_index(path)
    expected = contents(whole)
    end_of_data = len(LABELLED) * 1024 + 1024  # a header and a block each, two zero blocks
    for cut in [*range(0, len(content), 151), *range(0, len(content), 512), len(content) - 1]:
        path.write_bytes(content[:cut])
        if cut >= end_of_data:
            assert contents(open_index(path)) == expected
            continue
        assert "s.tar" in input_error("truncated", path)
        if cut >= 1024 + 512 + len(b"jpg 0"):  # the first image is whole
            index = open_index(path, on_error="quarantine")
            assert faults(index) == {"s.tar": "truncated"}
            ends = {
                str(name): number * 1024 + 512 + len(body)
                for number, (name, body) in enumerate(LABELLED)
            }
            whole_images = [
                f"s.tar/{name}" for name, end in ends.items() if name.endswith("jpg") and end <= cut
            ]
            assert contents(index) == {name: expected[name] for name in whole_images}


def corrupt(content: bytes, position: int, new: bytes, *, fix_sum: bool = True) -> bytes:
    """Change the first header."""
    header = bytearray(content[:512])
    header[position : position + len(new)] = new
    if fix_sum:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    ("position", "new", "fix_sum"),
    [
        (0, b"other", False),
        (124, b"77777777777\0", True),
        (124, b"\xff" * 12, True),
        (124, b"\x80" + b"\xff" * 11, True),
        (124, b"not octal!!\0", True),
        (156, b"L" + bytes(100), True),
        (156, b"x", True),
    ],
)
def test_corrupt_header_is_an_error(
    tmp_path: Path, position: int, new: bytes, fix_sum: bool
) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.png", b"x" * 3000), ("b.png", b"y")])
    path.write_bytes(corrupt(path.read_bytes(), position, new, fix_sum=fix_sum))
    with pytest.raises(InputError) as caught:
        open_index(path)
    assert caught.value.code in ("truncated", "no_images")


def test_joined_archives_are_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.png", b"x")])
    path.write_bytes(path.read_bytes() * 2)
    assert "joined" in input_error("truncated", path)


def test_archive_that_changed_since_the_scan_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.png", b"x")])
    index = open_index(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError) as caught:
        index.read(0)
    assert caught.value.code == "changed"


def test_archive_without_images_is_an_error(tmp_path: Path) -> None:
    input_error("no_images", write_tar(tmp_path / "s.tar", [("a.txt", b"x")]))
    input_error("no_images", write_tar(tmp_path / "empty.tar", []))
    (tmp_path / "zero.tar").write_bytes(b"")
    input_error("truncated", tmp_path / "zero.tar")


MEMBERS: list[Member] = [
    ("a.png", b"1"),
    ("a.json", json.dumps({"label": 1}).encode()),
    ("b" * 60 + "/" + "c" * 60 + ".png", b"2"),
    ("d.png", b"3"),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.tuples(st.floats(0, 0.6), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from(["fail", "quarantine"]),
)
def test_mutant_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    tar_format: Literal[0, 1, 2],
    mutations: list[tuple[float, int]],
    on_error: Literal["fail", "quarantine"],
) -> None:
    path = write_tar(tmp_path_factory.mktemp("mutant") / "s.tar", MEMBERS, tar_format)
    mutant = bytearray(path.read_bytes())
    for where, value in mutations:
        mutant[int(where * len(mutant))] = value
    path.write_bytes(mutant)
    with contextlib.suppress(GadcError, ImageError):
        contents(open_index(path, on_error=on_error))
