"""`gadc export`: finding the images again, lists on stdout, and options that don't fit."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from cli_runner import Gadc, gadc_fixture  # noqa: F401 - a fixture
from features_helpers import tiny_pixels, write_images
from gadc.subset import Subset
from subset_factory import folder_subset

QUICK = ("--patience", 0, "--start", "medoids")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def run(gadc: Gadc, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of `gadc select`: two images per class."""
    monkeypatch.setattr("gadc.runs.inputs.load_encoder", lambda *_args, **_rest: tiny_pixels())
    assert gadc("select", images, "--out", tmp_path / "run", "--per-class", 2, *QUICK).code == 0
    return tmp_path / "run"


def test_a_run_knows_where_its_images_are(gadc: Gadc, run: Path, tmp_path: Path) -> None:
    done = gadc("export", run, "--as", "imagefolder", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    assert (done.json["n_images"], done.json["n_verified"]) == (6, 6)
    assert len(list((tmp_path / "out" / "red").iterdir())) == 2


def test_the_images_may_have_moved(gadc: Gadc, run: Path, images: Path, tmp_path: Path) -> None:
    shutil.move(images, tmp_path / "moved")
    arguments = ("export", run, "--as", "imagefolder", "--out", tmp_path / "out")
    assert gadc(*arguments).error_code == "missing_source"
    assert gadc(*arguments, "--source", tmp_path / "moved").code == 0


def test_a_subset_alone_needs_to_be_told_where_its_images_are(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    subset, _ = folder_subset(images)
    subset.save(tmp_path / "subset.parquet")
    arguments = ("export", tmp_path / "subset.parquet", "--as", "imagefolder", "--out")
    done = gadc(*arguments, tmp_path / "out")
    assert (done.code, done.error_code) == (2, "source_unknown")
    assert gadc(*arguments, tmp_path / "out", "--source", images).code == 0


def test_lists_do_not_name_files_that_have_moved(
    gadc: Gadc, run: Path, images: Path, tmp_path: Path
) -> None:
    moved = shutil.move(images, tmp_path / "moved")
    for form in ("paths", "reference-json", "d2c-scores"):
        done = gadc("export", run, "--as", form)
        assert (done.code, done.error_code, done.stdout) == (2, "missing_source", "")
    assert gadc("export", run, "--as", "paths", "--path-prefix", "/elsewhere").code == 0
    listed = gadc("export", run, "--as", "paths", "--source", moved).stdout.splitlines()
    assert all(Path(path).is_file() for path in listed)


@pytest.mark.parametrize("placement", ["--copy", "--hardlink", "--symlink"])
def test_images_are_placed_as_asked_for(
    gadc: Gadc, run: Path, images: Path, tmp_path: Path, placement: str
) -> None:
    out = tmp_path / "out"
    assert gadc("export", run, "--as", "imagefolder", "--out", out, placement).code == 0
    linked = next((out / "red").iterdir())
    source = images / "red" / linked.name
    assert linked.samefile(source) == (placement != "--copy")
    assert linked.is_symlink() == (placement == "--symlink")


def test_a_folder_that_takes_no_links_takes_copies(
    gadc: Gadc, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    arguments = ("export", run, "--as", "imagefolder", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        assert gadc(*arguments, "--hardlink").error_code == "link_failed"
    assert gadc(*arguments, "--copy").code == 0


def test_an_image_that_changed_is_an_error(
    gadc: Gadc, run: Path, images: Path, tmp_path: Path
) -> None:
    chosen = Subset.load(run).paths[0]
    (images / chosen).write_bytes(b"another image")
    done = gadc("export", run, "--as", "imagefolder", "--out", tmp_path / "out")
    assert (done.code, done.error_code) == (2, "source_changed")
    assert chosen in done.stderr


def test_lists_go_to_stdout_and_name_files_that_are_there(gadc: Gadc, run: Path) -> None:
    listed = gadc("export", run, "--as", "paths").stdout.splitlines()
    assert listed == (run / "paths.txt").read_text().splitlines()
    assert all(Path(path).is_file() for path in listed)


def test_nul_ended_paths_are_for_xargs(gadc: Gadc, run: Path) -> None:
    text = gadc("export", run, "--as", "paths", "--null").stdout
    assert text.count("\0") == 6
    assert "\n" not in text


def test_reference_json_is_a_flat_list_class_by_class(
    gadc: Gadc, run: Path, tmp_path: Path
) -> None:
    arguments = ("export", run, "--as", "reference-json", "--out", tmp_path / "test_10.json")
    assert gadc(*arguments, "--path-prefix", "/data/train").code == 0
    listed = json.loads((tmp_path / "test_10.json").read_text())
    assert listed == [f"/data/train/{path}" for path in Subset.load(run).paths]


@pytest.mark.parametrize(
    ("form", "options", "last_file"),
    [
        ("hf", ("--per-shard", 4, "--license", "cc0-1.0"), "data/train-00001-of-00002.parquet"),
        ("wds", ("--per-shard", 4, "--caption-template", "a {class_name}"), "shard-000001.tar"),
        ("edm", ("--hardlink",), "images/00000/img00000005.png"),
        ("kohya", ("--repeats", 3, "--symlink"), "metadata.jsonl"),
        ("fiftyone", (), "labels.json"),
    ],
)
def test_every_format_goes_on_with_the_same_command(
    gadc: Gadc,
    run: Path,
    tmp_path: Path,
    form: str,
    options: tuple[object, ...],
    last_file: str,
) -> None:
    arguments = ("export", run, "--as", form, "--out", tmp_path / "out", "--json", *options)
    done = gadc(*arguments)
    assert done.code == 0, done.stderr
    assert (done.json["n_images"], done.json["n_written"], done.json["n_verified"]) == (6, 6, 6)
    assert (tmp_path / "out" / last_file).is_file()
    again = gadc(*arguments)
    assert (again.code, again.json["n_written"], again.json["n_verified"]) == (0, 0, 6)


def test_captions_come_from_the_column_asked_for(gadc: Gadc, run: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    paths = Subset.load(run).paths
    table.write_text("".join(json.dumps({"id": p, "prompt": f"see {p}"}) + "\n" for p in paths))
    arguments = ("export", run, "--as", "kohya", "--out", tmp_path / "out")
    done = gadc(*arguments, "--caption-file", table, "--caption-column", "prompt")
    assert done.code == 0, done.stderr
    found = {path.read_text().strip() for path in (tmp_path / "out").glob("1_*/*.txt")}
    assert found == {f"see {path}" for path in paths}


def test_reference_lists_of_several_sizes_have_the_names_it_looks_for(
    gadc: Gadc, run: Path, tmp_path: Path
) -> None:
    arguments = ("export", run, "--as", "reference-json", "--out", tmp_path / "lists")
    assert gadc(*arguments, "--sizes", "2,1").code == 0
    lengths = {
        path.name: len(json.loads(path.read_bytes())) for path in (tmp_path / "lists").iterdir()
    }
    assert lengths == {"test_1.json": 3, "test_2.json": 6}


@pytest.mark.parametrize("score", ["rank", "weight"])
def test_scores_name_files_that_are_there(gadc: Gadc, run: Path, score: str) -> None:
    classes = json.loads(gadc("export", run, "--as", "d2c-scores", "--score", score).stdout)
    assert [len(scores) for scores in classes] == [2, 2, 2]
    assert all(Path(path).is_file() for scores in classes for path in scores)
    values = {value for scores in classes for value in scores.values()}
    assert values == ({0.0, 1.0} if score == "rank" else {3.0})


def test_csv_has_a_row_per_image(gadc: Gadc, run: Path) -> None:
    lines = gadc("export", run, "--as", "csv").stdout.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("index,path,sha256,label,class_name")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--as", "imagefolder"), "no_output"),
        (("--as", "imagefolder", "--out", "o", "--copy", "--symlink"), "option_conflict"),
        (("--as", "imagefolder", "--out", "o", "--null"), "option_unused"),
        (("--as", "imagefolder", "--out", "o", "--path-prefix", "x"), "option_unused"),
        (("--as", "paths", "--hardlink"), "option_unused"),
        (("--as", "paths", "--json"), "option_conflict"),
        (("--as", "csv", "--null"), "option_unused"),
        (("--as", "csv", "--path-prefix", "x"), "option_unused"),
        (("--as", "csv", "--source", "."), "option_unused"),
        (("--as", "csv", "--wait", 3), "option_unused"),
        (("--as", "paths", "--path-prefix", "x", "--source", "."), "option_conflict"),
        (("--as", "hf", "--out", "o", "--symlink"), "option_unused"),
        (("--as", "edm", "--out", "o", "--per-shard", 5), "option_unused"),
        (("--as", "edm", "--out", "o", "--caption-template", "x"), "option_unused"),
        (("--as", "fiftyone", "--out", "o", "--caption-file", "x.csv"), "option_unused"),
        (("--as", "hf", "--out", "o", "--caption-column", "x"), "option_unused"),
        (("--as", "wds", "--out", "o", "--repeats", 2), "option_unused"),
        (("--as", "wds", "--out", "o", "--license", "mit"), "option_unused"),
        (("--as", "paths", "--sizes", "1,2"), "option_unused"),
        (("--as", "reference-json", "--score", "gain"), "option_unused"),
        (("--as", "reference-json", "--sizes", "1,2"), "no_output"),
        (("--as", "reference-json", "--sizes", "1,x", "--out", "o"), "bad_sizes"),
        (("--as", "reference-json", "--sizes", "3", "--out", "o"), "first_range"),
        (("--as", "wds"), "no_output"),
        (
            ("--as", "kohya", "--out", "o", "--caption-file", "f", "--caption-template", "t"),
            "option_conflict",
        ),
        (("--as", "paths", "--out", "nosuch/folder/list.txt"), "output_not_writable"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    gadc: Gadc, run: Path, options: tuple[str, ...], code: str
) -> None:
    done = gadc("export", run, *options)
    assert (done.code, done.error_code) == (2, code)


def test_what_is_no_subset_is_refused(gadc: Gadc, tmp_path: Path) -> None:
    assert gadc("export", tmp_path, "--as", "paths").error_code == "subset_missing"
    (tmp_path / "other.parquet").write_bytes(b"something")
    done = gadc("export", tmp_path / "other.parquet", "--as", "paths")
    assert (done.code, done.error_code) == (2, "not_a_subset")


def test_a_damaged_record_is_refused(gadc: Gadc, run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    for damaged in ({}, {"schema": 1}, {**record, "images": 5}, {**record, "files": None}):
        (run / "run.json").write_text(json.dumps(damaged))
        assert gadc("export", run, "--as", "paths").error_code == "bad_record"


@pytest.mark.parametrize("command", ["export", "report", "train"])
def test_a_subset_of_another_run_is_refused(
    gadc: Gadc, run: Path, images: Path, tmp_path: Path, command: str
) -> None:
    smaller, _ = folder_subset(images)
    smaller.save(run / "subset.parquet")
    options = {
        "export": ("--as", "paths"),
        "report": ("--out", tmp_path / "report.html"),
        "train": ("--space", "pixel", "--out", tmp_path / "trained"),
    }
    done = gadc(command, run, *options[command])
    assert (done.code, done.error_code) == (2, "subset_of_other_run")
