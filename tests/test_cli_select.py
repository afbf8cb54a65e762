"""`gadc select`: what it writes for images and for features, and what it refuses."""

import json
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy

from cli_runner import Gadc, gadc_fixture, snapshot, spawn  # noqa: F401 - a fixture
from features_helpers import tiny_pixels, write_images
from gadc.features.encoders import PixelEncoder
from gadc.features.store import read_table
from gadc.storage import exclusive, file_sha256
from gadc.subset import Subset
from real_data import REAL_DATA, needs_real_data
from waiting import PATIENCE_SECONDS, wait_until

QUICK = ("--patience", 0, "--start", "medoids")
TIMES = ("times", "class_seconds", "features_run", "select_run")


@pytest.fixture(autouse=True)
def tiny_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take four pixels a side: principal components of 3,072 numbers take seconds."""
    monkeypatch.setattr("gadc.runs.inputs.load_encoder", lambda *_args, **_rest: tiny_pixels())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def blobs(n_per_class: int = 8, n_classes: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    labels = np.repeat(np.arange(n_classes), n_per_class)
    features = random.normal(labels[:, None], 1.0, (len(labels), 4)).astype(np.float32)
    return {"features": features, "labels": labels.astype(np.int64)}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "blobs.safetensors"
    safetensors.numpy.save_file(blobs(), path)
    return path


def test_images_become_a_subset_and_all_that_belongs_to_it(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    (images / "red" / "notes.txt").write_text("no image")
    (images / "red" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    done = gadc(
        "select", images, "--out", out, "--per-class", 2, "--max-bad", 0.2, *QUICK, "--json"
    )
    assert done.code == 0
    record = done.json
    assert record == json.loads((out / "run.json").read_text())
    subset = Subset.load(out)
    assert subset.n_images == record["n_selected"] == 6
    assert subset.class_name == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    paths = (out / "paths.txt").read_text().splitlines()
    assert [file_sha256(Path(path)) for path in paths] == subset.sha256
    assert read_table(out / "quarantine.parquet")["path"] == ["red/broken.png"]
    assert read_table(out / "excluded.parquet")["path"] == ["red/notes.txt"]
    assert record["reconciliation"].startswith("20 scanned = 18 in the pool + 1 quarantined + 1 ")
    assert {name: file_sha256(out / name) for name in record["files"]} == record["files"]


def test_the_record_holds_the_proof_for_every_class(
    gadc: Gadc, features: Path, tmp_path: Path
) -> None:
    record = gadc(
        "select", features, "--out", tmp_path / "out", "--per-class", 3, *QUICK, "--json"
    ).json
    assert [entry["class_name"] for entry in record["classes"]] == ["0", "1", "2"]
    for entry in record["classes"]:
        terms = entry["terms"]
        assert entry["objective"] == terms["total"]
        assert {"transport", "mean", "std", "confidence"} <= set(terms)
        assert terms["transport_lower_bound"] <= terms["transport"]
        assert isinstance(entry["is_swap_optimal"], bool)
    assert record["config"]["per_class"] == 3
    assert record["seed"] == 0
    assert {"gadc", "torch", "numpy", "python"} <= set(record["versions"])


def test_the_text_shows_classes_counts_and_places(
    gadc: Gadc, features: Path, tmp_path: Path
) -> None:
    done = gadc("select", features, "--out", tmp_path / "out", "--per-class", 3, *QUICK)
    assert "9 of 24 images" in done.stdout
    assert "24 scanned = 24 usable + 0 quarantined + 0 excluded" in done.stdout
    assert "swap-optimal" in done.stdout
    assert "subset.parquet" in done.stdout


def test_a_second_run_gives_the_same_bytes_and_searches_nothing(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    arguments = ("select", images, "--out", tmp_path / "out", "--per-class", 2, *QUICK, "--json")
    first, files = gadc(*arguments).json, snapshot(tmp_path / "out")
    second, again = gadc(*arguments).json, snapshot(tmp_path / "out")
    assert second["select_run"]["computed"] == second["features_run"]["computed"] == 0
    del files["run.json"], again["run.json"]
    assert again == files
    for name in TIMES:
        del first[name], second[name]
    assert second == first


def test_features_on_disk_give_the_same_subset_as_the_images(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    gadc("select", images, "--out", tmp_path / "a", "--per-class", 2, *QUICK)
    gadc("features", images, "--out", tmp_path / "features")
    gadc("select", tmp_path / "features", "--out", tmp_path / "b", "--per-class", 2, *QUICK)
    first, second = Subset.load(tmp_path / "a"), Subset.load(tmp_path / "b")
    assert (first.paths, first.sha256) == (second.paths, second.sha256)


@needs_real_data
def test_features_of_ones_own_belong_to_the_images_of_a_parquet_file(
    gadc: Gadc, tmp_path: Path
) -> None:
    data = REAL_DATA / "cifar10" / "test.parquet"
    own = REAL_DATA / "cifar10" / "test_resnet56_features.safetensors"
    done = gadc(
        "select", data, "--features", own, "--out", tmp_path / "out", "--per-class", 2, *QUICK
    )
    assert done.code == 0, done.stderr
    subset = Subset.load(tmp_path / "out")
    assert subset.n_images == 20
    assert "airplane" in subset.class_name
    assert None not in subset.sha256
    exported = gadc("export", tmp_path / "out", "--as", "imagefolder", "--out", tmp_path / "e")
    assert exported.code == 0, exported.stderr
    assert len(list((tmp_path / "e").rglob("*.*"))) >= 20


def test_features_with_ids_are_matched_by_id(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    gadc("features", images, "--out", tmp_path / "features")
    stored = read_table(tmp_path / "features" / "items.parquet")
    order = np.random.default_rng(0).permutation(len(stored["id"]))
    rows = safetensors.numpy.load_file(tmp_path / "features" / "features.safetensors")["features"]
    np.savez(
        tmp_path / "own.npz", features=rows[order], ids=np.array(stored["id"])[order].astype("U")
    )
    choose = ("--per-class", 2, *QUICK)
    gadc("select", images, "--out", tmp_path / "a", *choose)
    gadc("select", images, "--features", tmp_path / "own.npz", "--out", tmp_path / "b", *choose)
    assert Subset.load(tmp_path / "a").paths == Subset.load(tmp_path / "b").paths


def test_a_parquet_file_of_features_is_not_taken_for_images(gadc: Gadc, tmp_path: Path) -> None:
    arrays = blobs()
    columns = {
        "features": arrays["features"].tolist(),
        "class_name": [f"blob {label}" for label in arrays["labels"]],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "own.parquet")
    done = gadc(
        "select", tmp_path / "own.parquet", "--out", tmp_path / "out", "--budget", 3, *QUICK
    )
    assert done.code == 0, done.stderr
    assert Subset.load(tmp_path / "out").class_name == ["blob 0", "blob 1", "blob 2"]


def test_labels_may_stand_in_a_file_of_their_own(gadc: Gadc, tmp_path: Path) -> None:
    arrays = blobs()
    np.save(tmp_path / "own.npy", arrays["features"])
    (tmp_path / "labels.txt").write_text("\n".join(f"b{label}" for label in arrays["labels"]))
    done = gadc(
        "select", tmp_path / "own.npy", "--labels-file", tmp_path / "labels.txt",
        "--out", tmp_path / "out", "--per-class", 2, *QUICK,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert Subset.load(tmp_path / "out").class_name == ["b0", "b0", "b1", "b1", "b2", "b2"]


def test_a_target_of_another_encoder_is_refused(
    gadc: Gadc, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gadc("features", images, "--out", tmp_path / "pool")
    other = PixelEncoder(side_px=3, n_components=5)
    monkeypatch.setattr("gadc.runs.inputs.load_encoder", lambda *_args, **_rest: other)
    done = gadc(
        "select", tmp_path / "pool", "--target", images, "--out", tmp_path / "out",
        "--per-class", 2, *QUICK,
    )  # fmt: skip
    assert (done.code, done.error_code) == (2, "encoder_mismatch")


@pytest.mark.parametrize(
    ("options", "n_expected"),
    [
        (("--fraction", 0.25), 6),
        (("--budget", 7), 7),
        (("--budget", 7, "--allocate", "sqrt"), 7),
        (("--allocation-file", "shares.json"), 5),
        (("--per-class", 20), 24),
    ],
)
def test_every_way_to_say_how_many(
    gadc: Gadc, features: Path, tmp_path: Path, options: tuple[object, ...], n_expected: int
) -> None:
    (tmp_path / "shares.json").write_text('{"0": 2, "2": 3}')
    options = tuple(tmp_path / str(o) if o == "shares.json" else o for o in options)
    done = gadc("select", features, "--out", tmp_path / "out", *options, *QUICK, "--json")
    assert done.code == 0, done.stderr
    assert done.json["n_selected"] == n_expected


def test_a_class_that_is_too_small_is_reported(gadc: Gadc, features: Path, tmp_path: Path) -> None:
    done = gadc("select", features, "--out", tmp_path / "out", "--per-class", 9, *QUICK)
    assert "3 fewer than asked for" in done.stdout


def test_images_without_classes_form_clusters(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    done = gadc(
        "select", images, "--no-labels", "--clusters", 3, "--budget", 6, "--out",
        tmp_path / "out", *QUICK, "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.json["division"] == "clusters"
    assert done.json["n_selected"] == 6


def test_kept_images_are_in_and_excluded_ones_are_not(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "keep.txt").write_text("red/000.png\n")
    (tmp_path / "exclude.txt").write_text(f"{images / 'red' / '001.png'}\n")  # a path does as well
    done = gadc(
        "select", images, "--out", tmp_path / "out", "--per-class", 5,
        "--keep", tmp_path / "keep.txt", "--exclude", tmp_path / "exclude.txt", *QUICK,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    paths = Subset.load(tmp_path / "out").paths
    assert "red/000.png" in paths
    assert "red/001.png" not in paths


def test_an_earlier_subset_can_be_excluded(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    choose = ("--per-class", 2, *QUICK)
    gadc("select", images, "--out", tmp_path / "a", *choose)
    gadc("select", images, "--out", tmp_path / "b", *choose, "--exclude", tmp_path / "a")
    first, second = Subset.load(tmp_path / "a"), Subset.load(tmp_path / "b")
    assert not set(first.paths) & set(second.paths)


def test_a_target_of_images_is_matched_in_the_pools_components(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    # The target is a copy of one image per class: that image matches it best.
    for colour in ("red", "green", "blue"):
        (tmp_path / "target" / colour).mkdir(parents=True)
        content = (images / colour / "003.png").read_bytes()
        (tmp_path / "target" / colour / "x.png").write_bytes(content)
    done = gadc(
        "select", images, "--target", tmp_path / "target", "--out", tmp_path / "out",
        "--per-class", 1, "--confidence-weight", 0, *QUICK,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert Subset.load(tmp_path / "out").paths == [
        f"{colour}/003.png" for colour in ("blue", "green", "red")
    ]


def test_names_with_line_breaks_make_a_list_of_nul_ended_paths(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    (images / "red" / "000.png").rename(images / "red" / "new\nline.png")
    done = gadc("select", images, "--out", tmp_path / "out", "--per-class", 6, *QUICK, "--json")
    assert done.json["paths_end_with"] == "nul"
    listed = (tmp_path / "out" / "paths.txt").read_bytes().split(b"\0")[:-1]
    assert all(Path(os.fsdecode(path)).is_file() for path in listed)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), "budget_choice"),
        (("--per-class", 2, "--budget", 3), "budget_choice"),
        (("--per-class", 0), "bad_config"),
        (("--per-class", -3), "bad_config"),
        (("--per-class", 25), "budget_range"),
        (("--budget", 0), "bad_config"),
        (("--budget", 25), "budget_range"),
        (("--fraction", 1.5), "bad_config"),
        (("--fraction", "nan"), "bad_config"),
        (("--per-class", 2, "--capacity", 0.5), "bad_config"),
        (("--per-class", 2, "--epsilon", "inf"), "bad_config"),
        (("--per-class", 2, "--workers", 0), "bad_argument"),
        (("--per-class", 9, "--shortfall", "error"), "class_too_small"),
        (("--per-class", 2, "--keep", "nosuch.txt"), "unreadable_file"),
        (("--per-class", 2, "--labels-file", "nosuch.npy"), "unreadable_features"),
        (("--allocation-file", "nosuch.json"), "unreadable_file"),
        (("--per-class", 2, "--features", "nosuch.npy"), "missing_source"),
    ],
)
def test_what_cannot_be_done_exits_2(
    gadc: Gadc, features: Path, tmp_path: Path, options: tuple[object, ...], code: str
) -> None:
    done = gadc("select", features, "--out", tmp_path / "out", *options)
    assert done.code == 2
    assert done.error_code == code
    assert not (tmp_path / "out" / "subset.parquet").exists()


def test_features_of_features_are_refused(gadc: Gadc, features: Path, tmp_path: Path) -> None:
    options = ("--per-class", 2, "--features", features)
    done = gadc("select", features, "--out", tmp_path / "out", *options)
    assert (done.code, done.error_code) == (2, "features_twice")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_named_by_row(
    gadc: Gadc, tmp_path: Path, bad: float
) -> None:
    arrays = blobs()
    arrays["features"][[4, 11], 2] = bad
    safetensors.numpy.save_file(arrays, tmp_path / "bad.safetensors")
    done = gadc("select", tmp_path / "bad.safetensors", "--out", tmp_path / "out", "--budget", 2)
    assert (done.code, done.error_code) == (2, "features_not_finite")
    assert "rows 4, 11" in done.stderr


def test_features_and_labels_of_different_length_are_refused(gadc: Gadc, tmp_path: Path) -> None:
    arrays = blobs()
    np.savez(tmp_path / "bad.npz", features=arrays["features"], labels=arrays["labels"][:-1])
    done = gadc("select", tmp_path / "bad.npz", "--out", tmp_path / "out", "--budget", 2)
    assert (done.code, done.error_code) == (2, "length_mismatch")
    assert "24" in done.stderr
    assert "23" in done.stderr


def test_features_of_other_images_are_refused(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", blobs()["features"])
    done = gadc(
        "select", images, "--features", tmp_path / "own.npy", "--out", tmp_path / "out",
        "--budget", 2,
    )  # fmt: skip
    assert (done.code, done.error_code) == (2, "length_mismatch")


def test_labels_that_contradict_the_folders_are_refused(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "own.npz",
        features=random.normal(size=(18, 3)).astype(np.float32),
        labels=np.repeat([0, 2, 1], 6),
    )
    done = gadc(
        "select", images, "--features", tmp_path / "own.npz", "--out", tmp_path / "out",
        "--budget", 2,
    )  # fmt: skip
    assert (done.code, done.error_code) == (2, "label_mismatch")


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path(self.path),))  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".npy", ".npz"])
def test_a_pickle_is_refused_and_nothing_in_it_runs(
    gadc: Gadc, tmp_path: Path, suffix: str
) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"features{suffix}"
    if suffix == ".npz":
        np.savez(path, features=np.array([Canary(canary)], dtype=object))
    elif suffix == ".npy":
        np.save(path, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Canary(canary)))
    done = gadc("select", path, "--out", tmp_path / "out", "--budget", 2)
    assert (done.code, done.error_code) == (2, "pickle_refused")
    assert not canary.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_file_is_refused(gadc: Gadc, features: Path, tmp_path: Path) -> None:
    features.chmod(0)
    done = gadc("select", features, "--out", tmp_path / "out", "--budget", 2)
    assert done.code == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"no safetensors at all"])
def test_a_broken_file_is_refused(gadc: Gadc, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    done = gadc("select", tmp_path / "broken.safetensors", "--out", tmp_path / "out", "--budget", 2)
    assert done.code == 2
    assert str(tmp_path / "broken.safetensors") in done.stderr


def test_output_in_the_images_is_refused(gadc: Gadc, images: Path) -> None:
    done = gadc("select", images, "--out", images / "out", "--per-class", 2)
    assert (done.code, done.error_code) == (2, "output_inside_input")


def test_a_second_process_is_refused_at_once(gadc: Gadc, features: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "classes").mkdir(parents=True)
    with exclusive(tmp_path / "out" / "classes"):
        done = gadc("select", features, "--out", tmp_path / "out", "--per-class", 2)
    assert (done.code, done.error_code) == (1, "locked")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    gadc: Gadc, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    safetensors.numpy.save_file(blobs(80, 12), tmp_path / "blobs.safetensors")
    choose = ("select", tmp_path / "blobs.safetensors", "--per-class", 6, *QUICK, "--out")
    out = tmp_path / "interrupted"
    process = spawn(*choose, out)
    # Until the first class is done.
    wait_until(lambda: list(out.glob("classes/0*.json")), while_running=process)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, stderr
    assert "run the same command again" in stderr
    assert not (out / "run.json").exists()
    assert gadc(*choose, out, "--json").json["select_run"]["reused"] >= 1
    assert gadc(*choose, tmp_path / "whole").code == 0
    assert file_sha256(out / "subset.parquet") == file_sha256(tmp_path / "whole/subset.parquet")


def test_nested_sizes_are_in_the_record_and_the_first_can_be_exported(
    gadc: Gadc, features: Path, tmp_path: Path
) -> None:
    out, paths = tmp_path / "out", tmp_path / "paths.txt"
    arguments = ("select", features, "--out", out, "--per-class", 6, *QUICK)
    done = gadc(*arguments, "--nested-sizes", "2,4")
    assert done.code == 0, done.stderr
    assert "first 2: " in done.stdout
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["nested"] == [2, 4]
    for entry in record["classes"]:
        assert [smaller["n_selected"] for smaller in entry["nested"]] == [2, 4]
    exported = gadc("export", out, "--as", "paths", "--first", 2, "--out", paths)
    assert exported.code == 0, exported.stderr
    subset = Subset.load(out)
    expected = [path for path, rank in zip(subset.paths, subset.rank, strict=True) if rank < 2]
    assert [line.rpartition("/")[2] for line in paths.read_text().splitlines()] == expected


def test_nested_without_sizes_halves(gadc: Gadc, tmp_path: Path) -> None:
    path = tmp_path / "blobs.safetensors"
    safetensors.numpy.save_file(blobs(n_per_class=30, n_classes=2), path)
    record = gadc(
        "select", path, "--out", tmp_path / "out", "--per-class", 21, "--nested", *QUICK, "--json"
    ).json
    assert record["config"]["nested"] == "halves"
    assert [len(entry["nested"]) for entry in record["classes"]] == [1, 1]
    assert record["classes"][0]["nested"][0]["n_selected"] == 10


def test_sizes_that_do_not_ascend_are_refused(gadc: Gadc, features: Path, tmp_path: Path) -> None:
    arguments = ("select", features, "--out", tmp_path / "out", "--per-class", 6)
    assert gadc(*arguments, "--nested-sizes", "4,2").error_code == "bad_config"
    assert gadc(*arguments, "--nested-sizes", "few").error_code == "nested_sizes"
    assert not (tmp_path / "out").exists()


def test_a_folder_of_shards_is_selected_from(gadc: Gadc, features: Path, tmp_path: Path) -> None:
    whole = safetensors.numpy.load_file(features)
    (tmp_path / "shards").mkdir()
    for number, rows in enumerate(np.split(np.arange(24), [5, 17])):
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(values[rows]) for name, values in whole.items()},
            tmp_path / "shards" / f"{number}.safetensors",
        )
    results = []
    for data in (features, tmp_path / "shards"):
        out = tmp_path / f"out-{data.name}"
        done = gadc("select", data, "--out", out, "--per-class", 3, *QUICK)
        assert done.code == 0, done.stderr
        results.append(Subset.load(out).paths)
    assert results[0] == results[1]
