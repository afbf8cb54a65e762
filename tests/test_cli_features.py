"""`gadc features`: what it prints, and what it refuses."""

import os
from pathlib import Path

import pytest

from cli_runner import Gadc, gadc_fixture, snapshot  # noqa: F401 - a fixture
from features_helpers import tiny_pixels, write_images
from gadc.storage import exclusive

NAMES = ("--encoder", "pixels")


@pytest.fixture(autouse=True)
def tiny_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take four pixels a side: principal components of 3,072 numbers take seconds."""
    from gadc.runs import inputs

    real = inputs.load_encoder
    monkeypatch.setattr(
        inputs,
        "load_encoder",
        lambda name, **rest: tiny_pixels() if name == "pixels" else real(name, **rest),
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_the_result_counts_every_file(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    (images / "red" / "notes.txt").write_text("no image")
    (images / "red" / "broken.png").write_bytes(b"no image either")
    done = gadc("features", images, "--out", tmp_path / "out", *NAMES, "--max-bad", 0.2, "--json")
    assert done.code == 0
    found = done.json
    assert (found["n_images"], found["n_quarantined"], found["n_excluded"]) == (18, 1, 1)
    assert found["n_scanned"] == 20
    assert found["excluded_by_reason"] == {"no image suffix": 1}
    assert sum(found["quarantined_by_code"].values()) == 1


def test_the_text_shows_the_counts_and_the_folder(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    done = gadc("features", images, "--out", tmp_path / "out", *NAMES)
    assert "18 scanned = 18 usable + 0 quarantined + 0 excluded" in done.stdout
    assert str(tmp_path / "out") in done.stdout


def test_a_second_run_computes_nothing(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    arguments = ("features", images, "--out", tmp_path / "out", *NAMES, "--json")
    assert gadc(*arguments).json["n_computed"] == 18
    first = snapshot(tmp_path / "out")
    again = gadc(*arguments).json
    assert (again["n_computed"], again["n_reused"]) == (0, 18)
    assert snapshot(tmp_path / "out") == first


def test_quiet_leaves_only_the_result(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    done = gadc("--quiet", "features", images, "--out", tmp_path / "out", *NAMES)
    assert done.stderr == ""
    assert done.stdout


def test_strict_exit_tells_of_bad_images(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "out", *NAMES, "--strict-exit", "--max-bad", 0.2)
    assert gadc("features", images, *arguments).code == 0
    (images / "red" / "broken.png").write_bytes(b"no image")
    assert gadc("features", images, *arguments).code == 3


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        ("nosuch", (), "missing_source"),
        ("empty", (), "no_images"),
        ("texts", (), "no_images"),
        ("images", ("--encoder", "nosuch"), "unknown_encoder"),
        ("images", ("--max-bad", "2"), "bad_argument"),
        ("images", ("--batch-size", "0"), "bad_argument"),
        ("images", ("--min-side-px", "0"), "bad_policy"),
        ("images", ("--class-map", "nosuch.json"), "bad_class_map"),
        ("images", ("--device", "abacus"), "unknown_device"),
        ("images/red", ("--labels",), "no_labels"),
        ("list.xyz", (), "unknown_source"),
    ],
)
def test_what_cannot_be_used_exits_2_before_any_output(
    gadc: Gadc, images: Path, tmp_path: Path, data: str, options: tuple[str, ...], code: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    (tmp_path / "list.xyz").write_text("")
    encoder = () if code in ("unknown_encoder", "unknown_device") else NAMES
    if code == "unknown_device":
        encoder = ("--encoder", "cifar10-resnet56")
    done = gadc("features", tmp_path / data, "--out", tmp_path / "out", *encoder, *options)
    assert done.code == 2
    assert done.error_code == code
    assert not [name for name in snapshot(tmp_path / "out") if not name.startswith(".gadc")]


def test_an_unknown_encoder_gets_the_list_of_those_there_are(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    done = gadc("features", images, "--out", tmp_path / "out", "--encoder", "nosuch")
    assert "pixels" in done.stderr
    assert "transformers:" in done.stderr


def test_an_encoder_that_cannot_be_loaded_names_the_offline_way(
    gadc: Gadc, images: Path, tmp_path: Path
) -> None:
    missing = f"transformers:{tmp_path / 'nosuch'}"
    done = gadc("features", images, "--out", tmp_path / "out", "--encoder", missing)
    assert done.code == 2
    assert "--encoder pixels" in done.stderr


@pytest.mark.parametrize("out", ["images", "images/out", "images/red/out"])
def test_output_in_the_data_is_refused(gadc: Gadc, images: Path, tmp_path: Path, out: str) -> None:
    before = snapshot(images)
    done = gadc("features", images, "--out", tmp_path / out, *NAMES)
    assert (done.code, done.error_code) == (2, "output_inside_input")
    assert snapshot(images) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_is_refused(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    done = gadc("features", images, "--out", tmp_path / "out", *NAMES)
    assert (done.code, done.error_code) == (2, "output_not_writable")


def test_a_file_as_output_is_refused(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    done = gadc("features", images, "--out", tmp_path / "out", *NAMES)
    assert (done.code, done.error_code) == (2, "output_is_file")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_in_use_names_who_uses_it(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out"):
        done = gadc("features", images, "--out", tmp_path / "out", *NAMES)
    assert (done.code, done.error_code) == (1, "locked")
    assert f"process {os.getpid()}" in done.stderr


def test_the_data_stays_as_it_was(gadc: Gadc, images: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*")}, snapshot(images)
    gadc("features", images, "--out", tmp_path / "out", *NAMES)
    assert (
        {path: path.stat().st_mtime_ns for path in images.rglob("*")},
        snapshot(images),
    ) == before
