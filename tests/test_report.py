"""Reports: what is computed for them, what stands in them, and what is refused."""

import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from cli_runner import Gadc, gadc_fixture  # noqa: F401 - a fixture
from gadc.errors import InputError, MissingExtraError
from gadc.exact import exact_partial_transport
from gadc.images.index import open_index
from gadc.report.build import TEXT_BYTES, build_report
from gadc.report.comparison import read_comparison
from gadc.report.document import data_block, format_number, plotly_source
from gadc.report.geometry import PLAN_ENTRIES, class_geometry, map_of
from gadc.report.thumbnails import Thumbnails, encoded
from gadc.report.training import curves_of
from gadc.report.training_view import MAX_NUMBERS, N_CURVES
from report_runs import (
    INJECTIONS,
    WITH_SLASH,
    comparison_rows,
    loss_lines,
    select_images,
    write_comparison,
    write_experiment,
    write_named_images,
    write_training,
)

SETTINGS = {"scale": 1.0, "capacity": 1.05, "epsilon": 0.01}
ODD = os.fsdecode(b"odd \xff\xe2\x80\xae name")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    images = write_named_images(root / "images", ("oak", ODD, "elm"))
    (images / "oak" / "broken.png").write_bytes(b"no image")
    return select_images(images, root / "selected")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    out = run.parent / "report.html"
    build_report([run], out)
    return out.read_text()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    parsed: dict[str, Any] = json.loads(found[1])
    return parsed


def refused(code: str, *runs: Path, out: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        build_report(runs, out, **options)
    assert caught.value.code == code, caught.value
    return caught.value.message


# What is computed


def test_the_plan_leaves_the_farthest_images_unmatched() -> None:
    """One image stands for twenty-one on a line: the capacity of exactly one can stay unused."""
    positions = np.array([[0.0], *[[0.1 * step] for step in range(1, 20)], [9.0]], np.float32)
    seen = class_geometry(positions, np.array([0]), **{**SETTINGS, "capacity": 21 / 20})
    assert seen.unused is not None
    assert seen.unused[20] == pytest.approx(1.0, abs=1e-6)
    assert seen.unused[:19] == pytest.approx(np.zeros(19), abs=0.02)  # entropic: a little is left
    assert np.flatnonzero(seen.is_unmatched).tolist() == [20]


def test_unused_capacity_is_that_of_the_linear_programme() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 3)).astype(np.float32)
    chosen = np.array([3, 11, 25])
    seen = class_geometry(features, chosen, **{**SETTINGS, "epsilon": 1e-3, "capacity": 1.25})
    costs = ((features[chosen][:, None] - features[None]) ** 2).sum(-1).astype(np.float64)
    exact = exact_partial_transport(costs, capacity=1.25)
    assert seen.unused is not None
    used = (1.0 - seen.unused) * 1.25 / 40
    differing = np.abs(used - exact.plan.sum(0)) > 1e-3
    assert differing.sum() <= 3  # a border image of each row is split a little otherwise
    assert seen.unused.mean() == pytest.approx(1.0 - 1.0 / 1.25)


def test_balanced_transport_leaves_nothing_unmatched() -> None:
    features = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    seen = class_geometry(features, np.array([1, 4]), **{**SETTINGS, "capacity": 1.0})
    assert seen.unused is None
    assert not seen.is_unmatched.any()


def test_neighbours_are_the_nearest_others_by_brute_force() -> None:
    features = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    chosen = np.array([40, 2, 17])
    seen = class_geometry(features, chosen, **{**SETTINGS, "scale": 4.0})
    for place, row in enumerate(chosen):
        distances = np.linalg.norm(features - features[row], axis=1)
        distances[row] = np.inf
        expected = np.argsort(distances)[:6]
        assert seen.neighbours[place].tolist() == expected.tolist()
        np.testing.assert_allclose(
            seen.neighbour_distances[place], distances[expected] / 2.0, rtol=1e-4
        )


def test_a_class_of_one_image_has_no_neighbours() -> None:
    seen = class_geometry(np.ones((1, 3), np.float32), np.array([0]), **SETTINGS)
    assert seen.neighbours.shape == (1, 0)
    assert seen.distance.tolist() == [0.0]


def test_a_class_too_large_for_its_plan_is_looked_at_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gadc.report.geometry.PLAN_ENTRIES", 100)
    assert PLAN_ENTRIES > 100
    features = np.random.default_rng(1).normal(size=(90, 2)).astype(np.float32)
    seen = class_geometry(features, np.array([5, 31]), **SETTINGS)
    assert seen.looked_at.tolist() == list(range(0, 90, 2))
    assert seen.unused is not None
    assert len(seen.unused) == len(seen.distance) == 45
    assert not np.isin(seen.neighbours, [5, 31]).any()  # neither is among those looked at


def test_a_part_too_small_to_tell_gives_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gadc.report.geometry.PLAN_ENTRIES", 100)
    features = np.random.default_rng(1).normal(size=(90, 2)).astype(np.float32)
    seen = class_geometry(features, np.arange(20), **SETTINGS)
    assert seen.unused is None
    assert len(seen.distance) == len(seen.looked_at) == 5


def test_the_map_is_the_projection_on_the_main_directions() -> None:
    random = np.random.default_rng(2)
    features = (random.normal(size=(60, 5)) * [9, 4, 1, 1, 1]).astype(np.float32)
    plane = map_of(features, np.array([7]), n_sampled=1000, seed=0)
    centred = features - features.mean(0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:2].T
    signs = np.sign((expected * plane.positions).sum(0))
    np.testing.assert_allclose(plane.positions, expected * signs, atol=1e-3)
    assert plane.explained == pytest.approx(lengths[:2] ** 2 / (lengths**2).sum(), rel=1e-3)


def test_a_sampled_map_has_all_chosen_images_and_says_how_many_others() -> None:
    features = np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32)
    chosen = np.array([499, 0, 250])
    plane = map_of(features, chosen, n_sampled=40, seed=0)
    assert plane.n_pool == 40
    assert np.isin(chosen, plane.rows).all()
    assert 40 <= len(plane.rows) <= 43


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (2, 2)])
def test_a_map_of_very_little_is_still_a_map(shape: tuple[int, int]) -> None:
    plane = map_of(np.ones(shape, np.float32), np.array([0]), n_sampled=10, seed=0)
    assert plane.positions.shape == (shape[0], 2)
    assert np.isfinite(plane.positions).all()
    assert np.isfinite(plane.explained).all()


def test_a_thumbnail_is_never_larger_than_its_image_nor_than_asked() -> None:
    small = encoded(Image.new("RGB", (20, 10)), side_px=64)
    assert (small.width, small.height, small.is_crisp) == (20, 10, True)
    wide = encoded(Image.new("RGB", (4000, 100)), side_px=60)
    assert (wide.width, wide.height) == (60, 20)  # the middle of it, three times as wide as high
    content = base64.b64decode(wide.base64)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "WEBP"
        assert image.size == (60, 20)
        assert not image.getexif()


def test_thumbnails_stop_at_their_budget_and_name_what_is_wrong(tmp_path: Path) -> None:
    root = write_named_images(tmp_path / "images", ("a",))
    (root / "a" / "bad.png").write_bytes(b"no image")
    index = open_index(root)
    made = Thumbnails(index, budget_bytes=1)
    names = index.ids
    assert made.get("a/bad.png", side_px=8) is None
    assert made.get("gone.png", side_px=8) is None
    assert made.get(names[0], side_px=8, sha256="0" * 64) is None
    assert made.get(names[1], side_px=8) is not None
    assert made.get(names[2], side_px=8) is None
    assert made.n_left_out == 1
    assert made.get(names[1], side_px=8) is made.made(names[1])
    assert set(made.faults) == {"a/bad.png", "gone.png", names[0]}


def test_numbers_are_averaged_over_seeds_and_undefined_ones_stay_empty(tmp_path: Path) -> None:
    by_class = comparison_rows(class_name="oak")
    found = read_comparison(
        write_comparison(tmp_path, comparison_rows() + by_class) / "comparison.parquet"
    )
    assert [method["name"] for method in found.methods] == ["random", "k-center", "gadc"]
    energy = found.cells[0, 0, 0]
    assert (energy.mean, energy.sd, energy.n_seeds) == (4.0, 1.0, 3)
    recall = found.cells[0, 1, 1]
    assert (recall.mean, recall.sd, recall.note) == (None, None, "needs more than 5 images")
    assert found.cells[0, 2, 0].sd is None
    assert found.by_class == len(by_class)


def test_a_point_of_a_curve_is_the_mean_of_the_steps_since_the_point_before(
    tmp_path: Path,
) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 10, "n_steps": 10, "loss": 4.0, "images_per_second": 100.0},
        {"step": 40, "n_steps": 30, "loss": 2.0, "images_per_second": 300.0},
        {"step": 50, "n_steps": 10, "loss": None, "images_per_second": 100.0},
        {"step": 60, "n_steps": 10, "loss": 1.0, "images_per_second": 100.0, "odd": "text"},
    ]
    run = write_training(tmp_path / "run", lines)
    found = curves_of(run, n_points=2)
    assert found.steps == [40, 60]
    assert found.values["loss"] == [2.5, 1.0]
    # 40 steps in 1/10 + 1/10 of the unit, not at (100 + 3 * 300) / 4.
    assert found.values["images_per_second"] == [200.0, 100.0]
    assert found.images_per_second == pytest.approx(60 / (10 / 100 + 30 / 300 + 20 / 100))
    assert found.values["odd"] == [None, None]
    assert curves_of(run, n_points=9).values["loss"] == [4.0, 2.0, None, 1.0]


def test_numbers_are_written_with_four_decimals() -> None:
    assert [format_number(value) for value in (0.5, 0.0, 12.34567, 1e-5, None)] == [
        "0.5000",
        "0.0000",
        "12.3457",
        "1.00e-05",
        "–",
    ]


# What stands in the file


def test_data_can_not_end_its_element() -> None:
    value = {"names": [*INJECTIONS, *WITH_SLASH, ODD]}
    block = data_block(value)
    assert not set("<>&") & set(block)
    assert block.isascii()
    assert json.loads(block) == value


def test_the_file_asks_for_nothing_from_elsewhere(text: str) -> None:
    without_plotly = re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", text, flags=re.DOTALL)
    assert len(without_plotly) < len(text) / 2
    for name, address in re.findall(r'\b(src|href|action|data)="([^"]*)"', without_plotly):
        assert address.startswith(("#", "data:image/webp;base64,")), (name, address)
    assert "@import" not in without_plotly
    assert "url(" not in without_plotly


def test_the_policy_allows_the_scripts_and_styles_of_the_file_alone(text: str) -> None:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert found is not None
    policy = dict(part.split(" ", 1) for part in html.unescape(found[1]).split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    for name, element in (("script-src", "script"), ("style-src", "style")):
        contents = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digests = [
            base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            for content in contents
        ]
        assert contents
        assert {f"'sha256-{entry}'" for entry in digests} <= set(policy[name].split())
        assert "unsafe" not in policy[name]


def test_the_file_says_what_was_selected_and_what_was_left_out(text: str, run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert "6 images that stand for" in " ".join(text.split())
    assert "1 bad images were set aside (1 not_an_image)." in text
    assert "oak/broken.png" in text
    for digest in record["files"].values():
        assert digest in text
    assert record["pool"]["features_sha256"] in text


def test_names_that_are_no_text_become_visible(text: str) -> None:
    assert "odd \\udcff\\u202e name" in text
    assert "\u202e" not in text
    assert "odd \\udcff\\u202e name" in data_of(text)["selections"][0]["classes"]


def test_the_curve_is_the_objective_of_the_first_images(text: str, run: Path) -> None:
    curve = data_of(text)["selections"][0]["curve"]
    record = json.loads((run / "run.json").read_text())
    objectives = [entry["objective"] / entry["scale"] for entry in record["classes"]]
    assert curve[-1] == pytest.approx(np.mean(objectives), rel=1e-5)
    assert len(curve) == 2
    assert curve[0] > curve[1]


def test_equal_runs_give_equal_reports(text: str, run: Path, tmp_path: Path) -> None:
    build_report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


def test_several_runs_stand_in_one_file(run: Path, tmp_path: Path) -> None:
    compared = write_comparison(tmp_path / "compared", comparison_rows())
    done = build_report([run, compared, run], tmp_path / "report.html")
    assert len(done["selections"]) == 2
    assert done["comparisons"] == [{"run": str(compared), "n_methods": 3, "n_trainings": 0}]
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'<article class="run', page)) == 3
    assert [entry["number"] for entry in data_of(page)["selections"]] == [1, 2]


def test_losses_of_training_runs_stand_in_one_chart(tmp_path: Path) -> None:
    long = write_training(tmp_path / "long" / "run", loss_lines(30_000), seed=7)
    short = write_training(tmp_path / "short" / "run", [], steps=9)
    done = build_report([long, short], tmp_path / "report.html")
    assert [entry["step"] for entry in done["trainings"]] == [60_000, 0]
    page = (tmp_path / "report.html").read_text()
    (training,) = data_of(page)["trainings"]
    assert training["groups"] == [str(long), str(short)]  # their names alone are the same
    drawn = training["runs"][0]
    n_points = len(drawn["steps"])
    assert 100 < n_points <= MAX_NUMBERS // N_CURVES
    assert [len(values) for values in drawn["values"]] == [n_points] * 2
    assert len(data_block(training)) < 50_000
    for name in ("seed", "learning_rate", "images"):
        assert f">{name}<" in page


def test_an_experiment_shows_what_was_trained_for_it(tmp_path: Path) -> None:
    run = write_experiment(tmp_path / "out")
    done = build_report([run], tmp_path / "report.html")
    assert done["comparisons"][0]["n_trainings"] == 2
    page = (tmp_path / "report.html").read_text()
    (training,) = data_of(page)["trainings"]
    assert [entry["name"] for entry in training["runs"]] == [
        "Random · 3 per class · seed 0",
        "Gadc = Same · 3 per class · seed 1",
    ]
    shutil.rmtree(run / "runs" / "run0")
    done = build_report([run], tmp_path / "report.html")
    assert done["comparisons"][0]["n_trainings"] == 1
    assert "The losses of 1 training runs are not here" in (tmp_path / "report.html").read_text()


def test_a_file_has_as_many_images_as_fit_and_says_what_is_missing(
    run: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_plotly, n_bytes = len(plotly_source().encode()), 1000
    monkeypatch.setattr("gadc.report.build.MAX_BYTES", n_plotly + TEXT_BYTES + n_bytes)
    build_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()

    def image_bytes(page: str) -> list[int]:
        inline = re.findall(r"webp;base64,([A-Za-z0-9+/=]+)", page)
        listed = data_of(page)["selections"][0]["images"].values()
        return [len(content) for content in [*inline, *(entry[1] for entry in listed if entry[1:])]]

    found = image_bytes(page)
    assert 0 < sum(found) <= n_bytes + max(found)
    assert len(image_bytes(text)) > len(found)
    assert f"{12 - len(found)} images are here by name alone" in page
    assert "by name alone" not in text


def test_features_computed_elsewhere_are_found_again(gadc: Gadc, run: Path, tmp_path: Path) -> None:
    images = write_named_images(tmp_path / "images", ("ash", "fir"))
    path = tmp_path / "own.safetensors"
    features = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    safetensors.numpy.save_file({"features": features}, path)
    out = tmp_path / "out"
    options = ("--per-class", 1, "--out", out, "--start", "medoids")
    assert gadc("select", images, "--features", path, *options).code == 0
    done = gadc("report", out, "--out", tmp_path / "report.html", "--json").json
    assert done["selections"][0]["n_on_map"] == 8
    # Other features of the same images can't be told apart by their ids; other images can.
    shutil.rmtree(images / "ash")
    done = gadc("report", out, "--out", tmp_path / "report.html", "--json").json
    assert done["selections"][0]["n_on_map"] == 0
    assert (
        "map, neighbours and unmatched images are left out"
        in (tmp_path / "report.html").read_text()
    )


def test_clusters_are_found_again(tmp_path: Path) -> None:
    images = tmp_path / "flat"
    images.mkdir()
    for path in sorted(write_named_images(tmp_path / "named", ("a", "b")).rglob("*.png")):
        shutil.copy(path, images / path.name)
    run = select_images(images, tmp_path / "out", clusters=2, per_class=1)
    done = build_report([run], tmp_path / "report.html")
    assert done["selections"][0]["n_on_map"] == 8
    assert "2 clusters" in (tmp_path / "report.html").read_text()


def test_a_run_whose_images_are_gone_is_still_reported(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    record = json.loads((moved / "run.json").read_text())
    record["images"]["path"] = str(tmp_path / "nowhere")
    (moved / "run.json").write_text(json.dumps(record))
    done = build_report([moved], tmp_path / "report.html")
    assert done["selections"][0]["has_images"] is False
    assert done["selections"][0]["n_pictured"] == 0
    assert done["selections"][0]["n_on_map"] == 12
    assert "Images are not shown" in (tmp_path / "report.html").read_text()
    done = build_report([moved], tmp_path / "report.html", source=run.parent / "images")
    assert done["selections"][0]["has_images"] is True


def test_an_image_that_changed_since_is_not_shown_as_the_chosen_one(
    run: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(run.parent / "images", images)
    chosen = data_of((run.parent / "report.html").read_text())["selections"][0]["chosen"]
    path = next(entry["path"] for entry in chosen if entry["path"].startswith("oak"))
    Image.new("RGB", (12, 12), "red").save(images / path)
    done = build_report([run], tmp_path / "report.html", source=images)["selections"][0]
    assert done["n_pictured"] == done["n_chosen"] - 1
    page = (tmp_path / "report.html").read_text()
    assert "1 images can&#39;t be shown" in page
    assert "not the image that was selected" in page


# What is refused


def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    assert "neither run.json" in refused("not_a_run", tmp_path, out=tmp_path / "r.html")
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run / "subset.parquet", half)
    assert "has not finished" in refused("not_a_run", half, out=tmp_path / "r.html")
    refused("no_runs", out=tmp_path / "r.html")


def test_what_is_no_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comparison.parquet").write_bytes(b"PAR1 and nothing more")
    refused("bad_comparison", tmp_path, out=tmp_path / "r.html")
    odd = write_comparison(tmp_path / "odd", comparison_rows(split="pool"))
    rows = [{**row, "better": "faster"} for row in comparison_rows()]
    assert "faster" in refused("bad_comparison", write_comparison(odd, rows), out=tmp_path / "r")


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "table": []}'])
def test_what_is_no_experiment_is_refused(text: str, tmp_path: Path) -> None:
    run = write_comparison(tmp_path / "out", comparison_rows())
    (run / "experiment.json").write_text(text)
    refused("bad_experiment", run, out=tmp_path / "r.html")


def test_a_report_replaces_a_report_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "notes.html"
    out.write_text("<!DOCTYPE html>\n<p>mine")
    refused("output_exists", run, out=out)
    assert out.read_text().endswith("mine")
    refused("output_is_folder", run, out=tmp_path)
    refused("output_not_writable", run, out=tmp_path / "no" / "r.html")
    out.unlink()
    for _ in range(2):
        build_report([run], out)


def test_without_plotly_the_error_names_the_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"gadc\[report\]"):
        build_report([run], tmp_path / "report.html")
