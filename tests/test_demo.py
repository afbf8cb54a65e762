"""The demo on a part of its digits, and in full on demand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli_runner import Gadc, gadc_fixture, snapshot  # noqa: F401 - a fixture
from features_helpers import tiny_pixels
from gadc import demo
from gadc.subset import Subset

N_DIGITS = 400
N_PER_CLASS = 6  # recall looks at five neighbours among the selected


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo")
    return out, small_demo(out)


def small_demo(out: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        images, labels = demo.digits()
        patch.setattr(demo, "digits", lambda: (images[:N_DIGITS], labels[:N_DIGITS]))
        patch.setattr(demo, "N_PER_CLASS", N_PER_CLASS)
        patch.setattr("gadc.runs.inputs.load_encoder", lambda *_args, **_rest: tiny_pixels())
        return demo.run_demo(out, workers=1)


def test_digits_become_files_that_hold_the_scans(tmp_path: Path) -> None:
    images, labels = demo.digits()
    assert demo.write_digits(tmp_path) == len(images) == 1797
    for path in sorted(tmp_path.rglob("*.png"))[::199]:
        row = demo.row_of(str(path))
        assert path.parent.name == str(labels[row])
        assert (np.asarray(Image.open(path)) == images[row]).all()
    assert demo.write_digits(tmp_path) == 0


def test_the_demo_writes_what_it_says(shown: tuple[Path, dict[str, Any]]) -> None:
    out, result = shown
    for name, path in result["written"].items():
        assert Path(path).exists(), name
    assert json.loads((out / "comparison.json").read_text()) == result
    assert Subset.load(result["written"]["subset"]).n_images == 10 * N_PER_CLASS


def test_the_selection_beats_chance_on_what_it_optimises_and_on_what_it_does_not(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    measures = {measure["name"]: measure for measure in shown[1]["measures"]}
    for name in ("objective (what gadc minimises)", "energy distance", "MMD², RBF kernel"):
        assert measures[name]["gadc"] < min(measures[name]["random"])


def test_the_objective_shown_is_the_one_that_was_minimised(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    record = json.loads(Path(shown[1]["written"]["run"]).read_text())
    expected = np.mean([entry["objective"] / entry["scale"] for entry in record["classes"]])
    # Both are converged to 1e-9 or so; the probe's losses are float32.
    assert shown[1]["measures"][0]["gadc"] == pytest.approx(expected, rel=1e-6)


def test_a_second_demo_changes_no_file_but_the_times(
    shown: tuple[Path, dict[str, Any]],
) -> None:
    out, result = shown
    before = snapshot(out)
    assert small_demo(out) == result
    after = snapshot(out)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"selected/run.json", demo.REPORT_NAME}  # which shows the times


def test_random_choices_have_the_size_of_the_subset() -> None:
    _, labels = demo.digits()
    chosen = np.flatnonzero(labels == 3)[:4]
    drawn = demo._random_rows(labels, chosen, seed=0)
    assert labels[drawn].tolist() == [3] * 4


@pytest.mark.slow
def test_the_whole_demo_ends_with_its_table(gadc: Gadc, tmp_path: Path) -> None:
    done = gadc("demo", "--out", tmp_path / "demo")
    assert done.code == 0, done.stderr
    assert "energy distance" in done.stdout
    assert str(tmp_path / "demo" / "selected" / "subset.parquet") in done.stdout
