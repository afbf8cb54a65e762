"""Parquet: the bytes of each row, whatever the layout; no corrupt page is read as a whole one."""

import contextlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from gadc.errors import GadcError, InputError
from gadc.images import row_blocks
from gadc.images.decode import ImageError, decode
from gadc.images.index import ImageIndex, open_index
from real_data import REAL_DATA, needs_real_data

BYTES = [b"image %d" % number for number in range(10)]
HUB_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hub_images(paths: list[str | None] | None = None, contents: list[bytes] = BYTES) -> pa.Array:
    paths = paths or [f"{number}.jpg" for number in range(len(contents))]
    rows = [{"bytes": each, "path": path} for each, path in zip(contents, paths, strict=True)]
    return pa.array(rows, HUB_TYPE)


def write(
    path: Path,
    columns: dict[str, Any],
    *,
    features: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    table = pa.table(columns)
    if features is not None:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def class_label(*names: str) -> dict[str, Any]:
    return {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}


def contents(index: ImageIndex) -> list[bytes]:
    return [index.read(position) for position in range(len(index))]


def contents_or_code(index: ImageIndex) -> list[bytes | str]:
    found: list[bytes | str] = []
    for position in range(len(index)):
        try:
            found.append(index.read(position))
        except ImageError as error:
            found.append(error.code)
    return found


def input_error(code: str, source: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_index(source, **options)
    assert caught.value.code == code, caught.value
    return caught.value.message


# Real data


@needs_real_data
def test_cifar10_is_indexed_and_decodes() -> None:
    index = open_index(REAL_DATA / "cifar10" / "train.parquet")
    assert len(index) == index.n_scanned == 50_000
    assert index.class_names[:3] == ["airplane", "automobile", "bird"]
    assert_array_equal(index.labels, np.repeat(np.arange(10), 5000))
    assert index.ids[0] == "airplane/0000.jpg"
    for position in (49_999, 0, 25_000):
        decoded = decode(index.read(position))
        assert (decoded.image.size, decoded.flags) == ((32, 32), ())


# Columns and labels


@pytest.mark.parametrize("name", ["image", "img", "anything"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), HUB_TYPE])
def test_image_column_is_found(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    images = hub_images() if kind == HUB_TYPE else pa.array(BYTES, kind)
    columns = {"id": list(range(10)), name: images, "caption": ["x"] * 10}
    index = open_index(write(tmp_path / "a.parquet", columns))
    assert index.kind == "parquet"
    assert contents(index) == BYTES
    assert index.labels is None


def test_declared_column_goes_before_named_and_named_before_others(tmp_path: Path) -> None:
    columns = {"blob": pa.array(BYTES[::-1]), "image": hub_images()}
    assert contents(open_index(write(tmp_path / "a.parquet", columns))) == BYTES
    features = {"blob": {"_type": "Image"}}
    declared = write(tmp_path / "b.parquet", columns, features=features)
    assert contents(open_index(declared)) == BYTES[::-1]
    assert contents(open_index(declared, image_column="image")) == BYTES


def test_columns_that_can_not_be_told_apart_have_to_be_chosen(tmp_path: Path) -> None:
    numbers = [0, 1] * 5
    columns = {"left": pa.array(BYTES), "right": pa.array(BYTES[::-1])}
    path = write(tmp_path / "a.parquet", columns)
    assert "left, right" in input_error("ambiguous_image_column", path)
    assert contents(open_index(path, image_column="right")) == BYTES[::-1]
    assert "left, right" in input_error("bad_image_column", path, image_column="middle")

    columns = {"image": hub_images(), "fine_label": numbers, "coarse_label": numbers[::-1]}
    note = {"_type": "ClassLabel", "names": ["a", "b"]}
    features = {"fine_label": note, "coarse_label": note}
    path = write(tmp_path / "b.parquet", columns, features=features)
    assert "fine_label" in input_error("ambiguous_label_column", path)
    index = open_index(path, label_column="coarse_label")
    assert_array_equal(index.labels, numbers[::-1])
    assert open_index(path, labels=False).labels is None


def test_file_without_images_or_labels_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x"]})
    assert "text" in input_error("no_image_column", path)
    path = write(tmp_path / "b.parquet", {"image": hub_images()})
    input_error("no_labels", path, labels=True)
    input_error("bad_label_column", path, label_column="label")
    empty = write(tmp_path / "c.parquet", {"image": hub_images([], [])})
    input_error("no_images", empty)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (pa.array([7, 3, 7], pa.int8()), ["3", "7"], [1, 0, 1]),
        (pa.array([10, 9, 10], pa.uint64()), ["9", "10"], [1, 0, 1]),
        (pa.array(["dog", "", "dog"]), ["", "dog"], [1, 0, 1]),
        (pa.array(["b", "a/..", "b"]).dictionary_encode(), ["a/..", "b"], [1, 0, 1]),
        (pa.array(["b", "a", "b"], pa.large_string()), ["a", "b"], [1, 0, 1]),
        (pa.array([True, False, True]), ["0", "1"], [1, 0, 1]),
    ],
)
def test_labels_of_any_type_are_numbered(
    tmp_path: Path, labels: pa.Array, names: list[str], expected: list[int]
) -> None:
    columns = {"image": hub_images(contents=BYTES[:3]), "label": labels}
    index = open_index(write(tmp_path / "a.parquet", columns))
    assert index.class_names == names
    assert index.labels is not None
    assert index.labels.dtype == np.int64
    assert_array_equal(index.labels, expected)


def test_class_names_come_from_the_hub_note(tmp_path: Path) -> None:
    columns = {"image": hub_images(contents=BYTES[:3]), "label": [2, 0, 2]}
    path = write(tmp_path / "a.parquet", columns, features=class_label("z", "train", "a"))
    index = open_index(path)
    assert index.class_names == ["z", "train", "a"]
    assert_array_equal(index.labels, [2, 0, 2])


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ([0, 1, 2], "label_out_of_range"),
        ([0, -2, 1], "label_out_of_range"),
        ([0, -1, 1], "missing_label"),
        ([0, None, 1], "missing_label"),
    ],
)
def test_wrong_label_is_an_error_that_names_a_row(
    tmp_path: Path, labels: list[int | None], code: str
) -> None:
    columns = {"image": hub_images(["x", "y", "z"], BYTES[:3]), "label": labels}
    path = write(tmp_path / "a.parquet", columns, features=class_label("a", "b"))
    message = input_error(code, path)
    assert ("z" if labels[1] == 1 else "y") in message
    assert open_index(path, labels=False).labels is None


def test_withheld_labels_are_none(tmp_path: Path) -> None:
    columns = {"image": hub_images(), "label": [-1] * 10}
    path = write(tmp_path / "a.parquet", columns, features=class_label("a", "b"))
    assert open_index(path).labels is None
    input_error("no_labels", path, labels=True)


@pytest.mark.parametrize(
    "note", [b"not json", b"[]", b'{"info": 1}', b'{"info": {"features": []}}', b"[" * 100_000]
)
def test_unreadable_hub_note_is_ignored(tmp_path: Path, note: bytes) -> None:
    table = pa.table({"image": hub_images(), "label": [0] * 10})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), tmp_path / "a.parquet")
    assert open_index(tmp_path / "a.parquet").class_names == ["0"]


# Ids and folders


def test_ids_are_paths_only_where_all_are_there_and_differ(tmp_path: Path) -> None:
    for paths in (["a"] * 10, [None, *"abcdefghi"], ["", *"abcdefghi"]):
        path = write(tmp_path / "x.parquet", {"image": hub_images(paths)})
        assert open_index(path).ids == [f"x.parquet#{row}" for row in range(10)]
    path = write(tmp_path / "x.parquet", {"image": hub_images(list("abcdefghij"))})
    assert open_index(path).ids == list("abcdefghij")
    assert open_index(path).path(2) == "c"


def test_files_of_a_folder_are_joined_in_order(tmp_path: Path) -> None:
    for number, name in enumerate(["data/train-00001.parquet", "data/train-00000.parquet"]):
        columns = {"image": pa.array(BYTES[number::2]), "label": [number] * 5}
        write(tmp_path / name, columns, features=class_label("a", "b"), row_group_size=2)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.parquet").write_bytes(b"")
    index = open_index(tmp_path)
    assert contents(index) == BYTES[1::2] + BYTES[0::2]
    assert index.ids[4:6] == ["data/train-00000.parquet#4", "data/train-00001.parquet#0"]
    assert_array_equal(index.labels, [1] * 5 + [0] * 5)
    assert [item.path for item in index.excluded] == [".cache/x.parquet", "README.md"]
    assert index.n_scanned == 12


@pytest.mark.parametrize("what", ["names", "column", "kind"])
def test_files_that_disagree_are_an_error(tmp_path: Path, what: str) -> None:
    write(
        tmp_path / "a.parquet",
        {"image": hub_images(), "label": [0] * 10},
        features=None if what == "kind" else class_label("a", "b"),
    )
    write(
        tmp_path / "b.parquet",
        {
            ("img" if what == "column" else "image"): hub_images(),
            "label": ["x"] * 10 if what == "kind" else [0] * 10,
        },
        features=None if what == "kind" else class_label("a", "c" if what == "names" else "b"),
    )
    input_error("files_disagree", tmp_path)


# Reading by blocks


@pytest.mark.parametrize("row_group_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("kind", ["struct", "plain"])
def test_rows_in_any_order_equal_the_table(
    tmp_path: Path,
    row_group_size: int,
    use_dictionary: bool,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.bytes(int(size)) for size in generator.integers(0, 3000, 300)]
    images = hub_images(contents=rows) if kind == "struct" else pa.array(rows)
    path = write(
        tmp_path / "a.parquet",
        {"image": images},
        row_group_size=row_group_size,
        use_dictionary=use_dictionary,
        data_page_size=4096,
    )
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(row_blocks, "MAX_DICTIONARY_ROWS", 11)
    index = open_index(path)
    assert contents(index) == rows
    order = generator.permutation(300)[:80]
    assert [index.read(int(position)) for position in order] == [rows[row] for row in order]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(index.read, range(300))) == rows


def test_only_a_few_blocks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 4096)
    rows = [b"%4096d" % number for number in range(50)]
    path = write(tmp_path / "a.parquet", {"image": pa.array(rows)}, use_dictionary=False)
    index = open_index(path)
    assert contents(index) == rows
    kept = index.reader._blocks  # type: ignore[attr-defined]
    assert len(kept) == row_blocks.N_CACHED_BLOCKS
    assert all(len(block) == 1 for block in kept.values())


def test_row_without_bytes_is_no_image(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "elsewhere.jpg"}, None, {"bytes": b"x", "path": "a.jpg"}]
    index = open_index(write(tmp_path / "a.parquet", {"image": pa.array(rows, HUB_TYPE)}))
    for position in (0, 1):
        with pytest.raises(ImageError) as caught:
            index.read(position)
        assert caught.value.code == "not_an_image"
    assert index.read(2) == b"x"


@pytest.mark.parametrize("is_gone", [True, False])
def test_file_that_changed_since_the_scan_is_not_read(tmp_path: Path, is_gone: bool) -> None:
    path = write(tmp_path / "a.parquet", {"image": hub_images()})
    index = open_index(path)
    path.unlink() if is_gone else os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError) as caught:
        index.read(0)
    assert caught.value.code == "changed"


# Damage


def test_no_flipped_byte_is_read_as_if_it_were_whole(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.bytes(100) for _ in range(40)]
    path = write(
        tmp_path / "a.parquet",
        {"image": hub_images(contents=rows), "label": [0, 1] * 20},
        features=class_label("a", "b"),
        write_page_checksum=True,
        row_group_size=10,
    )
    content = path.read_bytes()
    expected = set(enumerate(rows))
    ids = open_index(path).ids
    n_refused = 0
    # The footer has no checksum; damage there is only known not to crash (see the mutants below).
    for position in range(0, len(content) - footer_bytes(content), 11):
        flipped = bytes([content[position] ^ 0x40])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            index = open_index(path)
        except InputError:
            n_refused += 1
            continue
        assert index.ids == ids
        assert_array_equal(index.labels, [0, 1] * 20)
        found = set(enumerate(contents_or_code(index)))
        damaged = {each for _, each in found - expected}
        assert damaged <= {"io_error"}
        n_refused += bool(damaged)
    assert n_refused > 300


def footer_bytes(content: bytes) -> int:
    return 8 + int.from_bytes(content[-8:-4], "little")


def test_bad_page_costs_its_row_group_only(tmp_path: Path) -> None:
    rows = [b"%050d" % number for number in range(40)]
    path = write(
        tmp_path / "a.parquet",
        {"image": pa.array(rows)},
        write_page_checksum=True,
        row_group_size=10,
        use_dictionary=False,
        compression="none",
    )
    content = path.read_bytes()
    position = content.index(rows[25])
    path.write_bytes(content[:position] + b"x" + content[position + 1 :])
    index = open_index(path)
    assert contents_or_code(index) == [*rows[:20], *["io_error"] * 10, *rows[30:]]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"x" * 500])
def test_file_that_is_no_parquet_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert "a.parquet" in input_error("bad_parquet", tmp_path / "a.parquet")


def test_cut_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": hub_images()})
    content = path.read_bytes()
    for cut in range(0, len(content), 13):
        path.write_bytes(content[:cut])
        input_error("bad_parquet", path)


def test_more_rows_than_bytes_are_not_believed(tmp_path: Path) -> None:
    columns = {"image": pa.nulls(1_000_000, HUB_TYPE), "label": [0] * 1_000_000}
    path = write(tmp_path / "a.parquet", columns)
    assert "1000000 rows" in input_error("bad_parquet", path)


def test_columns_of_the_same_name_are_an_error(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([hub_images(), hub_images()], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    input_error("bad_parquet", tmp_path / "a.parquet")


@pytest.mark.parametrize("seed", range(200))
def test_mutant_file_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": hub_images(), "label": [0] * 10}), buffer)
    mutant = bytearray(buffer.getvalue())
    for _ in range(generator.integers(1, 5)):
        mutant[generator.integers(len(mutant))] = generator.integers(256)
    (tmp_path / "a.parquet").write_bytes(mutant)
    with contextlib.suppress(GadcError):
        contents_or_code(open_index(tmp_path / "a.parquet"))
