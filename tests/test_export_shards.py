"""WebDataset shards and Hugging Face datasets, read back by the libraries themselves."""

import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gadc.errors import InputError, MissingExtraError
from gadc.export import export_huggingface, export_webdataset
from gadc.export.dataset_card import dataset_card
from gadc.images.index import open_index
from gadc.images.selected import SelectedImages
from gadc.storage import escape_name
from gadc.subset import Subset
from odd_pictures import UNDECODABLE_CLASS, picture, write_odd_pictures, write_pictures
from subset_factory import folder_subset, without_digests

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")

Export = Callable[..., Any]
EXPORTS = [export_webdataset, export_huggingface]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return write_odd_pictures(tmp_path / "odd")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    names = [f"{name}/{number}.png" for name in ("cat", "dog", "eel") for number in range(4)]
    return write_pictures(tmp_path / "animals", *names)


def contents(subset: Subset, root: Path) -> list[bytes]:
    return [(root / path).read_bytes() for path in subset.paths]


def captions_of(subset: Subset) -> list[str]:
    return [f"picture\n{row} \u00e9" for row in range(subset.n_images)]


def samples_of(folder: Path) -> list[dict[str, Any]]:
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(shards, shardshuffle=False))


def load(folder: Path, cache: Path) -> Any:
    """Load an export as a user does, without decoding its images."""
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache / "cache"))
    return loaded.cast_column("image", datasets.Image(decode=False))


def visible(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


# WebDataset


def test_webdataset_reads_every_image_with_its_class_record_and_caption(
    odd: Path, tmp_path: Path
) -> None:
    subset, index = folder_subset(odd)
    export_webdataset(subset, index, tmp_path / "out", captions=captions_of(subset))
    found = {json.loads(sample["json"])["id"]: sample for sample in samples_of(tmp_path / "out")}
    assert len(found) == subset.n_images
    for row, content in enumerate(contents(subset, odd)):
        sample = found[escape_name(subset.paths[row])]
        assert sample["png"] == content
        assert int(sample["cls"]) == subset.labels[row]
        assert sample["txt"].decode() == captions_of(subset)[row]
        record = json.loads(sample["json"])
        assert record["class_name"] == escape_name(subset.class_name[row])
        assert (record["rank"], record["gain"]) == (subset.rank[row], subset.gain[row])
        assert record["sha256"] == hashlib.sha256(content).hexdigest()


def test_webdataset_decodes_the_pixels(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "data", "c/1.JPEG", "c/2.png")
    (root / "c" / "1.JPEG").write_bytes(jpeg := encoded_jpeg())
    subset, index = folder_subset(root)
    export_webdataset(subset, index, tmp_path / "out")
    shards = str(tmp_path / "out" / "shard-000000.tar")
    first, second = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
    assert np.array_equal(first["jpg"], Image.open(io.BytesIO(jpeg)))
    assert np.array_equal(second["png"], Image.open(root / "c" / "2.png"))
    assert (first["cls"], first["json"]["id"]) == (0, "c/1.JPEG")


def test_webdataset_shards_mix_classes_and_the_first_are_a_smaller_subset(
    animals: Path, tmp_path: Path
) -> None:
    subset, index = folder_subset(animals)
    export_webdataset(subset, index, tmp_path / "out", images_per_shard=3)
    samples = samples_of(tmp_path / "out")
    assert [int(sample["cls"]) for sample in samples] == [0, 1, 2] * 4
    assert [json.loads(sample["json"])["rank"] for sample in samples] == sorted([*range(4)] * 3)
    keys = [sample["__key__"] for sample in samples]
    assert keys == sorted(set(keys))


def test_webdataset_index_tells_count_length_and_digest_of_each_shard(
    animals: Path, tmp_path: Path
) -> None:
    subset, index = folder_subset(animals)
    export_webdataset(subset, index, tmp_path / "out", images_per_shard=5)
    described = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert described["n_images"] == 12
    assert [shard["n_images"] for shard in described["shards"]] == [5, 5, 2]
    for shard in described["shards"]:
        content = (tmp_path / "out" / shard["name"]).read_bytes()
        assert shard["n_bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_webdataset_is_a_source_for_gadc_and_for_datasets(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_webdataset(subset, index, tmp_path / "out")
    again = open_index(tmp_path / "out")
    assert again.labels is not None
    found = {again.read(row): int(again.labels[row]) for row in range(len(again))}
    assert found == dict(zip(contents(subset, animals), subset.labels.tolist(), strict=True))
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(tmp_path / "out" / "*.tar")},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert sorted(item["rank"] for item in loaded["json"]) == sorted(subset.rank.tolist())
    assert loaded[0]["png"].size == (4, 4)


# Hugging Face


def test_load_dataset_reads_every_image_and_column(odd: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(odd)
    export_huggingface(subset, index, tmp_path / "out", captions=captions_of(subset))
    loaded = load(tmp_path / "out", tmp_path)
    assert [item["bytes"] for item in loaded["image"]] == contents(subset, odd)
    assert list(loaded["label"]) == subset.labels.tolist()
    assert loaded.features["label"].names == [escape_name(name) for name in subset.class_names]
    assert list(loaded["id"]) == [escape_name(path) for path in subset.paths]
    assert list(loaded["sha256"]) == subset.sha256
    assert list(loaded["rank"]) == subset.rank.tolist()
    assert list(loaded["gain"]) == subset.gain.tolist()
    assert list(loaded["weight"]) == subset.weight.tolist()
    assert list(loaded["text"]) == captions_of(subset)


def test_load_dataset_decodes_the_pixels(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_huggingface(subset, index, tmp_path / "out", images_per_shard=5)
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    for item, path in zip(loaded, subset.paths, strict=True):
        assert np.array_equal(item["image"], Image.open(animals / path))


def test_huggingface_export_is_a_source_for_gadc(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    export_huggingface(subset, index, tmp_path / "out", images_per_shard=5)
    again = open_index(tmp_path / "out")
    assert again.ids == subset.paths
    assert again.class_names == ["cat", "dog", "eel"]
    assert again.labels is not None
    assert again.labels.tolist() == subset.labels.tolist()


def test_a_class_without_selected_images_keeps_its_number_and_name(
    animals: Path, tmp_path: Path
) -> None:
    subset, index = folder_subset(animals)
    rest = of_rows(subset, [row for row in range(12) if subset.labels[row] != 1])
    classes = [{"label": label, "class_name": name} for label, name in enumerate(index.class_names)]
    rest = dataclasses.replace(rest, provenance={**rest.provenance, "classes": classes})
    export_huggingface(rest, index, tmp_path / "out")
    loaded = load(tmp_path / "out", tmp_path)
    assert loaded.features["label"].names == ["cat", "dog", "eel"]
    assert set(loaded["label"]) == {0, 2}


def test_card_is_what_the_hub_reads(animals: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    subset, _ = folder_subset(animals)
    known = hub.DatasetCard(dataset_card(subset, has_captions=True, license_id="cc-by-4.0")).data
    assert known.license == "cc-by-4.0"
    assert known.size_categories == ["n<1K"]
    assert known.task_categories == ["text-to-image", "image-classification"]
    assert "license" not in hub.DatasetCard(dataset_card(subset, has_captions=False)).data.to_dict()


def test_card_shows_names_as_text(odd: Path) -> None:
    subset, _ = folder_subset(odd)
    card = dataset_card(subset, has_captions=False)
    assert "<b>" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(set(subset.class_name))
    assert all(line.replace("\\|", "").count("|") == 4 for line in rows)
    assert card.isprintable() or all(c.isprintable() or c == "\n" for c in card)


def test_a_license_that_would_break_the_card_is_refused(animals: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(animals)
    with pytest.raises(InputError) as caught:
        export_huggingface(subset, index, tmp_path / "out", license_id="mit\nconfigs: []")
    assert caught.value.code == "bad_license"


# Both


@pytest.mark.parametrize("export", EXPORTS)
def test_equal_subsets_give_equal_bytes(animals: Path, tmp_path: Path, export: Export) -> None:
    subset, index = folder_subset(animals)
    export(subset, index, tmp_path / "one", images_per_shard=5)
    subset.save(tmp_path / "subset.parquet")
    export(
        Subset.load(tmp_path / "subset.parquet"),
        open_index(animals),
        tmp_path / "two",
        images_per_shard=5,
    )
    one = visible(tmp_path / "one")
    assert len(one) == 5
    assert one == visible(tmp_path / "two")


@pytest.mark.parametrize("export", EXPORTS)
def test_finished_shards_are_kept_and_torn_ones_written_again(
    animals: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset, index = folder_subset(animals)
    out = tmp_path / "out"
    done = export(subset, index, out, images_per_shard=5)
    assert (done.n_images, done.n_written, done.n_verified) == (12, 12, 12)
    whole = visible(out)
    first, second, third = sorted(path for path in whole if path.endswith((".tar", ".parquet")))
    (out / second).write_bytes(whole[second][:-1] + b"x")
    (out / third).unlink()
    read_rows: list[int] = []
    read = SelectedImages.read

    def counted(images: SelectedImages, row: int) -> bytes | None:
        read_rows.append(row)
        return read(images, row)

    monkeypatch.setattr(SelectedImages, "read", counted)
    again = export(subset, index, out, images_per_shard=5)
    assert (again.n_written, again.n_verified) == (7, 12)
    assert len(read_rows) == 7
    assert visible(out) == whole


@pytest.mark.parametrize("export", EXPORTS)
def test_a_changed_image_is_named_and_no_shard_holds_it(
    animals: Path, tmp_path: Path, export: Export
) -> None:
    subset, _ = folder_subset(animals)
    (animals / "eel" / "3.png").write_bytes(other := picture(99))
    with pytest.raises(InputError, match=r"1 images are not .*eel/3\.png") as caught:
        export(subset, open_index(animals), tmp_path / "out", images_per_shard=2)
    assert caught.value.code == "source_changed"
    out = visible(tmp_path / "out")
    assert not {"index.json", "README.md"} & set(out)
    assert all(other not in content for content in out.values())


@pytest.mark.parametrize("export", EXPORTS)
def test_other_shard_sizes_do_not_mix_in_one_folder(
    animals: Path, tmp_path: Path, export: Export
) -> None:
    subset, index = folder_subset(animals)
    export(subset, index, tmp_path / "out", images_per_shard=5)
    with pytest.raises(InputError) as caught:
        export(subset, index, tmp_path / "out", images_per_shard=6)
    assert caught.value.code == "output_in_use"


@pytest.mark.parametrize("export", EXPORTS)
def test_shards_of_another_selection_of_the_same_images_are_not_taken_for_this_one(
    animals: Path, tmp_path: Path, export: Export
) -> None:
    subset, index = folder_subset(animals)
    export(subset, index, tmp_path / "out")
    other = dataclasses.replace(subset, gain=subset.gain[::-1].copy())
    with pytest.raises(InputError) as caught:
        export(other, index, tmp_path / "out")
    assert caught.value.code == "output_in_use"
    moved = dataclasses.replace(subset, source=["elsewhere"] * subset.n_images)
    assert export(moved, index, tmp_path / "out").n_written == 0


@pytest.mark.parametrize("export", EXPORTS)
def test_without_digests_no_image_of_a_shard_counts_as_verified(
    animals: Path, tmp_path: Path, export: Export
) -> None:
    subset, index = folder_subset(animals)
    assert export(without_digests(subset), index, tmp_path / "out").n_verified == 0


@pytest.mark.parametrize(
    ("export", "form"), [(export_webdataset, "wds"), (export_huggingface, "hf")]
)
def test_a_caption_that_is_no_text_names_the_format(
    animals: Path, tmp_path: Path, export: Export, form: str
) -> None:
    subset, index = folder_subset(animals)
    with pytest.raises(InputError, match=f"--as {form} can't hold") as caught:
        export(subset, index, tmp_path / "out", captions=[UNDECODABLE_CLASS] * 12)
    assert caught.value.code == "export_cannot_hold"


@pytest.mark.parametrize("export", EXPORTS)
def test_shards_hold_an_image_at_least(animals: Path, tmp_path: Path, export: Export) -> None:
    subset, index = folder_subset(animals)
    with pytest.raises(InputError) as caught:
        export(subset, index, tmp_path / "out", images_per_shard=0)
    assert caught.value.code == "shard_range"


# Subset.to_hf


def test_to_hf_of_images_equals_the_export(odd: Path, tmp_path: Path) -> None:
    subset, index = folder_subset(odd)
    export_huggingface(subset, index, tmp_path / "out")
    loaded = load(tmp_path / "out", tmp_path)
    for images in (odd, str(odd), index):
        made = subset.to_hf(images).cast_column("image", datasets.Image(decode=False))
        assert made.features == loaded.features
        assert made.to_list() == loaded.to_list()


def test_to_hf_of_a_dataset_takes_its_rows_and_columns(animals: Path, tmp_path: Path) -> None:
    pool = pool_dataset(animals)
    whole, _ = folder_subset(animals)
    subset = of_rows(whole, [5, 4, 11])
    chosen = subset.to_hf(pool)
    assert list(chosen["name"]) == ["dog/1.png", "dog/0.png", "eel/3.png"]
    assert list(chosen["rank"]) == subset.rank.tolist()
    assert list(chosen["gain"]) == subset.gain.tolist()
    assert list(chosen["weight"]) == subset.weight.tolist()
    assert np.array_equal(chosen[0]["image"], Image.open(animals / "dog" / "1.png"))


def test_to_hf_refuses_a_dataset_of_other_rows(animals: Path) -> None:
    subset, _ = folder_subset(animals)
    pool = pool_dataset(animals)
    assert code_of(subset, pool.select(range(11))) == "source_mismatch"
    assert code_of(subset, pool.select([*range(11, -1, -1)])) == "source_changed"
    assert code_of(subset, pool.rename_column("name", "gain")) == "column_exists"
    counts = {"n_scanned": 13, "n_quarantined": 1}
    with_bad = dataclasses.replace(subset, provenance={**subset.provenance, **counts})
    assert code_of(with_bad, pool) == "source_mismatch"


def test_to_hf_refuses_images_that_changed(animals: Path) -> None:
    subset, _ = folder_subset(animals)
    write_pictures(animals, "eel/3.png")
    assert code_of(subset, animals) == "source_changed"


def test_to_hf_names_the_extra_that_is_missing(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset, index = folder_subset(animals)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"gadc\[hf\]"):
        subset.to_hf(index)


def code_of(subset: Subset, images: Any) -> str:
    with pytest.raises(InputError) as caught:
        subset.to_hf(images)
    return caught.value.code


def pool_dataset(root: Path) -> Any:
    """Return all images of a folder as a dataset, in the order of their ids."""
    index = open_index(root)
    images = [{"bytes": index.read(row), "path": None} for row in range(len(index))]
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, "name": index.ids}, features=features)


def of_rows(subset: Subset, rows: list[int]) -> Subset:
    """Return some rows of a subset."""
    lists = {
        name: [getattr(subset, name)[row] for row in rows]
        for name in ("paths", "sha256", "class_name", "source")
    }
    arrays = {
        name: getattr(subset, name)[rows] for name in ("index", "labels", "rank", "gain", "weight")
    }
    return dataclasses.replace(subset, **lists, **arrays)


def encoded_jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(content, "JPEG")
    return content.getvalue()
