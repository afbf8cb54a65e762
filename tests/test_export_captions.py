"""Captions: from the class, by a template, from a file; never for the wrong image."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gadc.errors import InputError
from gadc.export import class_captions, file_captions
from gadc.storage import escape_name
from gadc.subset import Subset
from image_sources import ODD_NAMES, make
from subset_factory import folder_subset


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    return folder_subset(make(tmp_path / "data", "cat/1.png", "cat/2.png", "dog/1.png"))[0]


def code_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    return caught.value.code


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_captions_are_class_names_unless_a_template_says_otherwise(subset: Subset) -> None:
    assert class_captions(subset) == ["cat", "cat", "dog"]
    template = "{{{label}}} a photo of a {class_name}, {rank}"
    assert class_captions(subset, template=template)[1:] == [
        "{0} a photo of a cat, 1",
        "{1} a photo of a dog, 0",
    ]


@pytest.mark.parametrize(
    "template",
    ["{name}", "{class_name.__class__}", "{class_name!r}", "{label:>9999999}", "{", "{}"],
)
def test_a_template_holds_only_known_names(subset: Subset, template: str) -> None:
    assert code_of(class_captions, subset, template=template) == "bad_template"


def test_class_names_with_braces_are_no_templates(tmp_path: Path) -> None:
    subset, _ = folder_subset(make(tmp_path / "data", "{label}/1.png", "b/1.png"))
    assert class_captions(subset, template="a {class_name}") == ["a b", "a {label}"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_gives_each_image_its_own_caption_whatever_its_name(
    tmp_path: Path, suffix: str
) -> None:
    subset, _ = folder_subset(make(tmp_path / "odd", *(f"c/{name}" for name in ODD_NAMES)))
    path = tmp_path / f"captions{suffix}"
    rows = [
        {"path": escape_name(name), "text": f"number\n{row} \u00e9"}
        for row, name in enumerate(subset.paths)
    ][::-1]
    rows.append({"path": "c/of another image.png", "text": "not used"})
    if suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, ["path", "text"])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    expected = [f"number\n{row} \u00e9" for row in range(subset.n_images)]
    assert file_captions(subset, path) == expected


def test_undecodable_names_may_stand_in_a_file_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"c/\xff\xfe.png")
    subset, _ = folder_subset(make(tmp_path / "odd", name, "c/2.png"))
    path = tmp_path / "captions.csv"
    path.write_bytes(b"id,prompt\nc/\xff\xfe.png,first\nc/2.png,second\n")
    found = dict(zip(subset.paths, file_captions(subset, path, column="prompt"), strict=True))
    assert found == {name: "first", "c/2.png": "second"}


def test_an_image_without_a_caption_is_named(subset: Subset, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"path": "cat/1.png", "text": "one"}])
    with pytest.raises(
        InputError, match=r"2 of the 3 images: 'cat/2\.png', 'dog/1\.png'"
    ) as caught:
        file_captions(subset, path)
    assert caught.value.code == "captions_missing"


@pytest.mark.parametrize(
    "row",
    [
        {"path": "cat/1.png", "text": "another"},
        {"path": "cat/2.png", "caption": "no column of that name"},
        {"name": "cat/2.png", "text": "no column of that name"},
        {"path": "cat/2.png", "text": 7},
        ["cat/2.png", "no object"],
    ],
)
def test_a_file_that_says_something_else_is_refused(
    subset: Subset, tmp_path: Path, row: Any
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"path": "cat/1.png", "text": "one"}, row])
    assert code_of(file_captions, subset, path) == "bad_captions"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", b"{"),
        ("c.jsonl", b"[" * 100_000),
        ("c.parquet", b"PAR1 no parquet"),
        ("c.txt", b"cat"),
        ("c.csv", b'a,b\n"'),
        ("c.jsonl", None),
    ],
)
def test_an_unreadable_file_is_refused(
    subset: Subset, tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert code_of(file_captions, subset, tmp_path / name) == "bad_captions"
