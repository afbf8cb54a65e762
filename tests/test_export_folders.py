"""Folders for EDM, kohya and FiftyOne: read as their readers do, every image is itself."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gadc.errors import InputError
from gadc.export import edm as edm_module
from gadc.export import (
    export_edm,
    export_fiftyone,
    export_imagefolder,
    export_kohya,
    export_reference_json,
    score_json,
)
from gadc.export.folder import METADATA_NAME, PLAN_NAME
from gadc.images.index import open_index
from gadc.portable_names import comparable
from gadc.storage import TEMPORARY_PREFIX, escape_name
from gadc.subset import Subset
from odd_pictures import UNDECODABLE_CLASS, write_odd_pictures, write_pictures
from subset_factory import folder_subset

Export = Callable[..., object]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return write_odd_pictures(tmp_path / "odd")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    names = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/sub/1.png", "dog/3.png")
    return write_pictures(tmp_path / "animals", *names)


def contents(subset: Subset, root: Path) -> list[bytes]:
    return [(root / path).read_bytes() for path in subset.paths]


def captions_of(subset: Subset) -> list[str]:
    return [f"picture {row}" for row in range(subset.n_images)]


def read_edm(folder: Path) -> tuple[list[bytes], list[int]]:
    """Read as EDM's ImageFolderDataset: sorted files with an image suffix, labels by name."""
    Image.init()
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in Image.EXTENSION
    )
    labels = dict(json.loads((folder / "dataset.json").read_bytes())["labels"])
    return [(folder / name).read_bytes() for name in names], [labels[name] for name in names]


def read_kohya(folder: Path) -> list[tuple[int, bytes, str]]:
    """Read as sd-scripts: `<repeats>_<name>` folders; the first line beside each image."""
    found = []
    for entry in os.listdir(folder):
        if (folder / entry).is_dir():
            repeats = int(entry.split("_")[0])
            for name in os.listdir(folder / entry):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
                    caption = (folder / entry / f"{stem}.txt").read_text("utf-8")
                    content = (folder / entry / name).read_bytes()
                    found.append((repeats, content, caption.splitlines()[0].strip()))
    return found


def read_fiftyone(folder: Path) -> dict[bytes, str]:
    """Read as FiftyOneImageClassificationDataset: labels by the name without its suffix."""
    labels = json.loads((folder / "labels.json").read_bytes())
    by_stem = {os.path.splitext(name)[0]: name for name in os.listdir(folder / "data")}
    return {
        (folder / "data" / by_stem[stem]).read_bytes(): labels["classes"][label]
        for stem, label in labels["labels"].items()
    }


# EDM and REPA


@pytest.mark.parametrize("start", ["", "images"])
def test_edm_gives_each_image_its_label_in_order(odd: Path, tmp_path: Path, start: str) -> None:
    subset, index = folder_subset(odd)
    export_edm(subset, index, tmp_path / "out")
    images, labels = read_edm(tmp_path / "out" / start)
    assert images == contents(subset, odd)
    assert labels == subset.labels.tolist()


def test_edm_order_survives_several_folders(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edm_module, "IMAGES_PER_FOLDER", 2)
    subset, index = folder_subset(animals)
    export_edm(subset, index, tmp_path / "out")
    assert len([entry for entry in (tmp_path / "out" / "images").iterdir() if entry.is_dir()]) == 3
    assert read_edm(tmp_path / "out")[0] == contents(subset, animals)


# kohya


def test_kohya_gives_each_image_its_caption_and_repeats(odd: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(odd)
    export_kohya(subset, index, tmp_path / "out", captions=captions_of(subset), repeats=7)
    found = {
        content: (repeats, caption) for repeats, content, caption in read_kohya(tmp_path / "out")
    }
    expected = zip(contents(subset, odd), captions_of(subset), strict=True)
    assert found == {content: (7, caption) for content, caption in expected}


def test_kohya_captions_are_class_names_unless_given(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    done = export_kohya(subset, index, tmp_path / "out")
    assert sorted(caption for _, _, caption in read_kohya(tmp_path / "out")) == sorted(
        subset.class_name
    )
    assert done.renamed_classes == {}
    assert (tmp_path / "out" / "1_cat" / "1.png").is_file()


def test_kohya_keeps_images_of_one_stem_apart(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "data", "c/1.png", "c/1.jpg", "c/1.a.png", "c/1.b.png")
    subset, index = folder_subset(root)
    export_kohya(subset, index, tmp_path / "out", captions=captions_of(subset))
    found = {content: caption for _, content, caption in read_kohya(tmp_path / "out")}
    assert found == dict(zip(contents(subset, root), captions_of(subset), strict=True))


def test_kohya_reports_classes_that_are_called_otherwise(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "data", "a:b/1.png", "plain/1.png")
    subset, index = folder_subset(root)
    done = export_kohya(subset, index, tmp_path / "out", repeats=3)
    assert done.renamed_classes == {"a:b": "3_a%3Ab"}


@pytest.mark.parametrize(
    ("caption", "what"), [("two\nlines", "lines"), ("  ", "empty"), (UNDECODABLE_CLASS, "Unicode")]
)
def test_kohya_names_itself_and_the_image_of_a_caption_it_cannot_hold(
    animals: Path, tmp_path: Path, caption: str, what: str
) -> None:
    subset, index = folder_subset(animals)
    captions = captions_of(subset)
    captions[1] = caption
    with pytest.raises(InputError, match=rf"--as kohya .*{what}.*cat/2\.png") as caught:
        export_kohya(subset, index, tmp_path / "out", captions=captions)
    assert caught.value.code == "export_cannot_hold"
    assert not (tmp_path / "out").exists()


def test_kohya_refuses_what_its_trainer_would_leave_out(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "data", "c/1.png", "c/2.gif", "c/3.TIF")
    subset, index = folder_subset(root)
    with pytest.raises(InputError, match=r"2 of the images.*2\.gif.*3\.TIF") as caught:
        export_kohya(subset, index, tmp_path / "out")
    assert caught.value.code == "export_cannot_hold"


def test_kohya_repeats_must_be_positive(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    with pytest.raises(InputError) as caught:
        export_kohya(subset, index, tmp_path / "out", repeats=0)
    assert caught.value.code == "repeats_range"


# FiftyOne


def test_fiftyone_gives_each_image_its_class(odd: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(odd)
    export_fiftyone(subset, index, tmp_path / "out")
    names = [escape_name(name) for name in subset.class_name]
    assert read_fiftyone(tmp_path / "out") == dict(zip(contents(subset, odd), names, strict=True))


def test_fiftyone_files_are_called_by_class_and_name(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_fiftyone(subset, index, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "data").iterdir()}
    assert {"cat-1.png", "cat-2.png", "dog-3.png"} < names
    assert len(names) == subset.n_images


def test_fiftyone_samples_tell_rank_and_gain_of_each_file(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_fiftyone(subset, index, tmp_path / "out")
    samples = json.loads((tmp_path / "out" / "samples.json").read_bytes())["samples"]
    found = [(tmp_path / "out" / sample["filepath"]).read_bytes() for sample in samples]
    assert found == contents(subset, animals)
    assert [sample["rank"] for sample in samples] == subset.rank.tolist()
    assert [sample["gain"] for sample in samples] == subset.gain.tolist()


# All of them


@pytest.mark.parametrize("export", [export_edm, export_kohya, export_fiftyone])
def test_every_folder_maps_files_to_ids_in_names_that_all_systems_take(
    odd: Path, tmp_path: Path, export: Export
) -> None:
    subset, index = folder_subset(odd)
    export(subset, index, tmp_path / "out", **takes(export, subset))
    lines = (tmp_path / "out" / METADATA_NAME).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [escape_name(path) for path in subset.paths]
    names = [record["file_name"] for record in records]
    assert len({comparable(name) for name in names}) == subset.n_images
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == contents(subset, odd)


@pytest.mark.parametrize("export", [export_edm, export_kohya, export_fiftyone])
def test_an_unfinished_folder_is_completed_and_ends_the_same(
    animals: Path, tmp_path: Path, export: Export
) -> None:
    subset, index = folder_subset(animals)
    export(subset, index, tmp_path / "whole")
    out = tmp_path / "out"
    export(subset, index, out)
    names = [json.loads(line)["file_name"] for line in (out / METADATA_NAME).open()]
    (out / METADATA_NAME).unlink()
    (out / names[0]).unlink()
    (out / names[1]).write_bytes(b"torn")
    ((out / names[2]).parent / f"{TEMPORARY_PREFIX}1-left").write_bytes(b"by a killed run")
    assert export(subset, index, out).n_written == 2  # type: ignore[attr-defined]
    assert visible(out) == visible(tmp_path / "whole")


@pytest.mark.parametrize("export", [export_edm, export_kohya, export_fiftyone])
def test_a_changed_image_is_an_error_and_nothing_looks_finished(
    animals: Path, tmp_path: Path, export: Export
) -> None:
    subset, _ = folder_subset(animals)
    write_pictures(animals, "dog/3.png")
    with pytest.raises(InputError, match=r"dog/3\.png") as caught:
        export(subset, open_index(animals), tmp_path / "out")
    assert caught.value.code == "source_changed"
    assert not (tmp_path / "out" / METADATA_NAME).exists()


def test_a_folder_of_another_format_is_left_alone(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_imagefolder(subset, index, tmp_path / "out")
    plan = (tmp_path / "out" / PLAN_NAME).read_bytes()
    with pytest.raises(InputError) as caught:
        export_fiftyone(subset, index, tmp_path / "out")
    assert caught.value.code == "output_in_use"
    assert (tmp_path / "out" / PLAN_NAME).read_bytes() == plan


@pytest.mark.parametrize("export", [export_edm, export_kohya, export_fiftyone])
def test_links_are_to_the_source(animals: Path, tmp_path: Path, export: Export) -> None:
    subset, index = folder_subset(animals)
    export(subset, index, tmp_path / "out", placement="hardlink")
    lines = (tmp_path / "out" / METADATA_NAME).read_text().splitlines()
    for line, path in zip(lines, subset.paths, strict=True):
        assert (tmp_path / "out" / json.loads(line)["file_name"]).samefile(animals / path)


# Lists


def test_reference_lists_are_the_first_of_each_class(animals: Path, tmp_path: Path) -> None:
    subset, _ = folder_subset(animals)
    files = export_reference_json(subset, tmp_path / "lists", sizes=[1, 3], prefix="/data")
    assert [path.name for path in files.values()] == ["test_1.json", "test_3.json"]
    assert json.loads(files[1].read_bytes()) == ["/data/cat/1.png", "/data/dog/1.png"]
    assert json.loads(files[3].read_bytes()) == [f"/data/{path}" for path in subset.paths]


def test_reference_lists_never_replace_another(animals: Path, tmp_path: Path) -> None:
    subset, _ = folder_subset(animals)
    (tmp_path / "test_2.json").write_text("[]")
    with pytest.raises(InputError) as caught:
        export_reference_json(subset, tmp_path, sizes=[1, 2])
    assert caught.value.code == "output_exists"
    assert not (tmp_path / "test_1.json").exists()


def test_scores_merged_and_sorted_are_the_order_of_selection(odd: Path) -> None:
    subset, _ = folder_subset(odd)
    classes = json.loads(score_json(subset, prefix="/data"))
    assert len(classes) == len(set(subset.class_name))
    listed = [path for scores in classes for path in sorted(scores, key=scores.__getitem__)]
    assert listed == [f"/data/{path}" for path in subset.paths]
    assert listed == list({path: None for scores in classes for path in scores})


@pytest.mark.parametrize("score", ["gain", "weight"])
def test_scores_are_the_ones_asked_for(animals: Path, score: str) -> None:
    subset, _ = folder_subset(animals)
    merged = {}
    for scores in json.loads(score_json(subset, score=score)):  # type: ignore[arg-type]
        merged |= scores
    assert np.array_equal([merged[path] for path in subset.paths], getattr(subset, score))


def test_an_unknown_score_lists_the_known(animals: Path) -> None:
    subset, _ = folder_subset(animals)
    with pytest.raises(InputError, match="rank or gain or weight"):
        score_json(subset, score="loss")  # type: ignore[arg-type]


def takes(export: Export, subset: Subset) -> dict[str, object]:
    """Captions where class names are none that the format can hold."""
    return {"captions": captions_of(subset)} if export is export_kohya else {}


def visible(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".gadc-lock", ".gadc-lock-owner.json")
    }
