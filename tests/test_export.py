"""Exports hold every image and every name, and never the wrong image."""

import csv
import hashlib
import io
import json
import os
import re
from pathlib import Path

import pytest

from gadc.errors import GadcError, InputError, RunError
from gadc.export import (
    METADATA_NAME,
    PLAN_NAME,
    csv_text,
    export_imagefolder,
    listed_paths,
    paths_text,
    reference_json,
)
from gadc.images.index import open_index
from gadc.portable_names import FORBIDDEN, comparable, portable_name
from gadc.storage import exclusive
from image_sources import ODD_NAMES, make
from real_data import REAL_DATA, needs_real_data
from subset_factory import folder_subset, subset_of, without_digests

ODD_CLASSES = (
    *("train", "Train", "test-tube", "CON", "-x", "=1+1", "a b ", "\u202etxt", "e%2F"),
    *("export.json", "Metadata.jsonl"),
)
SPLIT_PATTERN = re.compile(  # how `datasets` finds splits, see its data_files.py
    r"(^|[-._ 0-9/])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
    r"([-._ 0-9/]|$)"
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".gadc")
    }


def metadata_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / METADATA_NAME).read_text().splitlines()]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/sub/1.png"):
        make(root, name, content=name.encode())
    return root


def test_imagefolder_holds_the_bytes_of_every_selected_image(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    done = export_imagefolder(subset, index, tmp_path / "out")
    assert (done.n_images, done.n_written, done.n_verified) == (4, 4, 4)
    lines = metadata_of(done.folder)
    assert [line["id"] for line in lines] == subset.paths
    for line in lines:
        exported = (done.folder / str(line["file_name"])).read_bytes()
        assert exported == (animals / str(line["id"])).read_bytes()
    assert [line["class_name"] for line in lines] == ["cat", "cat", "dog", "dog"]


def test_imagefolder_keeps_images_of_one_name_apart(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_imagefolder(subset, index, tmp_path / "out")
    assert len({str(line["file_name"]) for line in metadata_of(tmp_path / "out")}) == 4


@pytest.mark.parametrize("placement", ["hardlink", "symlink"])
def test_links_point_to_the_source_and_take_no_copy(
    animals: Path, tmp_path: Path, placement: str
) -> None:
    subset, index = folder_subset(animals)
    export_imagefolder(subset, index, tmp_path / "out", placement=placement)  # type: ignore[arg-type]
    linked, source = tmp_path / "out" / "cat" / "1.png", animals / "cat" / "1.png"
    assert linked.samefile(source)
    assert linked.is_symlink() == (placement == "symlink")


def test_odd_names_of_files_and_classes_survive(tmp_path: Path) -> None:
    root = tmp_path / "odd"
    for class_name in ODD_CLASSES:
        make(root, f"{class_name}/plain.png", content=class_name.encode())
    for name in ODD_NAMES:
        make(root, f"train/{name}", content=os.fsencode(name))
    subset, index = folder_subset(root)
    export_imagefolder(subset, index, tmp_path / "out")
    names = [str(line["file_name"]) for line in metadata_of(tmp_path / "out")]
    assert len(names) == len({comparable(name) for name in names}) == subset.n_images
    for name, path in zip(names, subset.paths, strict=True):
        assert (tmp_path / "out" / name).read_bytes() == (root / path).read_bytes()
        assert not SPLIT_PATTERN.search(name)


def test_class_names_can_be_found_from_folder_names(tmp_path: Path) -> None:
    root = make(tmp_path / "odd", "train/1.png", "plain/1.png")
    subset, index = folder_subset(root)
    done = export_imagefolder(subset, index, tmp_path / "out")
    plan = json.loads((tmp_path / "out" / PLAN_NAME).read_text())
    folders = {entry["class_name"]: entry["folder"] for entry in plan["classes"]}
    assert set(folders) == {"train", "plain"}
    assert done.renamed_classes == {"train": folders["train"]}
    assert (tmp_path / "out" / folders["train"] / "1.png").is_file()


def test_a_changed_image_is_an_error_that_names_it(animals: Path, tmp_path: Path) -> None:
    subset, _ = folder_subset(animals)
    (animals / "dog" / "1.png").write_bytes(b"something else")
    with pytest.raises(InputError, match="dog/1.png") as caught:
        export_imagefolder(subset, open_index(animals), tmp_path / "out")
    assert caught.value.code == "source_changed"
    assert not (tmp_path / "out" / METADATA_NAME).exists()


def test_without_digests_nothing_counts_as_verified(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    done = export_imagefolder(without_digests(subset), index, tmp_path / "out")
    assert (done.n_images, done.n_verified) == (4, 0)


def test_a_missing_image_is_an_error_that_names_it(animals: Path, tmp_path: Path) -> None:
    subset, _ = folder_subset(animals)
    (animals / "cat" / "2.png").unlink()
    with pytest.raises(InputError, match="cat/2.png") as caught:
        export_imagefolder(subset, open_index(animals), tmp_path / "out")
    assert caught.value.code == "source_mismatch"


def test_an_unfinished_export_goes_on_and_ends_the_same(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    whole = files_of(export_imagefolder(subset, index, tmp_path / "whole").folder)
    out = tmp_path / "out"
    export_imagefolder(subset, index, out)
    (out / METADATA_NAME).unlink()
    (out / "cat" / "1.png").unlink()
    (out / "dog" / "1.png").write_bytes(b"torn")
    again = export_imagefolder(subset, index, out)
    assert again.n_written == 2
    assert files_of(out) == whole


@pytest.mark.parametrize(
    ("content", "code"), [("stranger.png", "output_not_empty"), (PLAN_NAME, "output_in_use")]
)
def test_a_folder_in_other_use_is_left_alone(
    animals: Path, tmp_path: Path, content: str, code: str
) -> None:
    subset, index = folder_subset(animals)
    out = make(tmp_path / "out", content, content=b"{}")
    with pytest.raises(InputError) as caught:
        export_imagefolder(subset, index, out)
    assert caught.value.code == code
    assert files_of(out) == {content: b"{}"}


def test_output_inside_the_source_is_refused(animals: Path) -> None:
    subset, index = folder_subset(animals)
    with pytest.raises(InputError) as caught:
        export_imagefolder(subset, index, animals / "out")
    assert caught.value.code == "output_inside_input"
    assert not (animals / "out").exists()


def test_a_folder_that_another_process_writes_is_refused(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out"), pytest.raises(RunError) as caught:
        export_imagefolder(subset, index, tmp_path / "out")
    assert caught.value.code == "locked"


@needs_real_data
def test_rows_of_a_parquet_file_are_copied_and_never_linked(tmp_path: Path) -> None:
    index = open_index(REAL_DATA / "cifar10" / "test.parquet")
    subset = subset_of(index, n_per_class=2)
    export_imagefolder(subset, index, tmp_path / "out")
    digests = [
        hashlib.sha256((tmp_path / "out" / str(line["file_name"])).read_bytes()).hexdigest()
        for line in metadata_of(tmp_path / "out")
    ]
    assert digests == subset.sha256
    with pytest.raises(InputError) as caught:
        export_imagefolder(subset, index, tmp_path / "links", placement="symlink")
    assert caught.value.code == "no_files_to_link"


def test_paths_come_class_by_class_with_the_prefix_asked_for(animals: Path) -> None:
    subset, _ = folder_subset(animals)
    assert listed_paths(subset, prefix="/data/") == [f"/data/{path}" for path in subset.paths]
    assert listed_paths(subset) == subset.paths


def test_a_list_of_lines_refuses_a_line_break_and_nul_takes_it() -> None:
    paths = ["a/plain.png", "a/new\nline.png"]
    with pytest.raises(InputError) as caught:
        paths_text(paths)
    assert caught.value.code == "newline_in_path"
    assert paths_text(paths, null=True).split("\0") == [*paths, ""]


def test_paths_and_reference_json_round_trip_every_name(tmp_path: Path) -> None:
    root = make(tmp_path / "odd", *(f"c/{name}" for name in ODD_NAMES))
    subset, _ = folder_subset(root)
    listed = os.fsencode(paths_text(listed_paths(subset), null=True))
    assert [os.fsdecode(path) for path in listed.split(b"\0")[:-1]] == subset.paths
    text = reference_json(listed_paths(subset))
    assert json.loads(text.encode("ascii")) == subset.paths


def test_csv_holds_no_formula(tmp_path: Path) -> None:
    root = make(tmp_path / "odd", "=cmd/1.png", "@x/1.png", "plain/1.png")
    subset, _ = folder_subset(root)
    rows = list(csv.DictReader(io.StringIO(csv_text(subset))))
    assert [row["class_name"] for row in rows] == ["'=cmd", "'@x", "plain"]
    assert [row["path"] for row in rows] == ["'=cmd/1.png", "'@x/1.png", "plain/1.png"]


@pytest.mark.parametrize("name", [*ODD_NAMES, *ODD_CLASSES, "", "..", ".", "a/b", "x" * 400])
def test_portable_names_are_safe_everywhere(name: str) -> None:
    safe = portable_name(name, taken=set())
    safe.encode("utf-8")
    assert 0 < len(safe.encode()) <= 255
    assert not set(safe) & (FORBIDDEN - {"%"})
    assert safe.isprintable()
    assert safe not in (".", "..")
    assert safe[0] not in "-. "
    assert safe[-1] not in ". "


def test_portable_names_of_one_folder_differ_even_without_case() -> None:
    taken: set[str] = set()
    given = ["a.png", "A.png", "e\u0301.png", "\u00e9.png", "a.png"]
    names = [
        portable_name(name, taken=taken, identity=f"{number}/{name}")
        for number, name in enumerate(given)
    ]
    assert len({comparable(name) for name in names}) == len(given)


def test_every_export_error_is_one_of_gadcs_own(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    with pytest.raises(GadcError) as caught:
        export_imagefolder(subset, index, tmp_path / "out", placement="move")  # type: ignore[arg-type]
    assert caught.value.code == "bad_choice"
