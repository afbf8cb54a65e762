"""`gadc compare` from files to files: the contract, resumption, bad input."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from cli_runner import Gadc, gadc_fixture, spawn  # noqa: F401
from gadc.comparison.files import SCHEMA
from gadc.comparison.judge import TITLES
from waiting import wait_until

N_CLASSES, N_FEATURES = 2, 4
QUICK = ("--patience", 0, "--no-proof", "--start", "greedy")


def write(path: Path, n_per_class: int, *, seed: int, mix: bool = False) -> Path:
    """Write classes around fixed centres, or a function of the same rows."""
    centres = 3.0 * np.random.default_rng(9).normal(size=(N_CLASSES, N_FEATURES))
    labels = np.repeat(np.arange(N_CLASSES), n_per_class)
    rng = np.random.default_rng(seed)
    features = centres[labels] + rng.normal(size=(len(labels), N_FEATURES))
    if mix:
        features = np.tanh(features @ np.random.default_rng(8).normal(size=(N_FEATURES, 3)))
    save_file({"features": features.astype(np.float32), "labels": labels}, path)
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write(tmp_path / "pool.safetensors", 15, seed=0)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(
        folder / "comparison.parquet"
    ).to_pylist()
    return rows


def numbers(folder: Path) -> dict[tuple[Any, ...], float | None]:
    """Every number but what depends on the machine."""
    return {
        tuple(value for name, value in row.items() if name not in ("value", "note")): row["value"]
        for row in rows_in(folder)
        if row["measure"] not in ("seconds", "peak-memory")
    }


def test_compare_writes_the_contract(gadc: Gadc, tmp_path: Path, pool: Path) -> None:
    out = tmp_path / "out"
    judge = write(tmp_path / "judge.safetensors", 15, seed=0, mix=True)
    held_out = write(tmp_path / "held.safetensors", 8, seed=1)
    judged = ("--judge", judge, "--held-out", held_out)
    asked = ("--methods", "gadc", "random", "herding", "--per-class", 3, 5, "--seeds", 2)
    ended = gadc("compare", pool, *asked, *judged, "--out", out, "--json", *QUICK)
    assert ended.code == 0, ended.stderr
    table = pyarrow.parquet.read_table(out / "comparison.parquet")
    assert table.schema.remove_metadata() == SCHEMA
    about = json.loads(table.schema.metadata[b"gadc"])
    assert set(about) == {"schema", "command", "data", "versions"}
    assert about["schema"] == 1
    rows = table.to_pylist()
    assert {row["kind"] for row in rows} == {"gadc", "random", "peer", "reference"}
    assert {row["n_per_class"] for row in rows} == {3, 5}
    assert {(row["method"], row["seed"]) for row in rows} == {
        *(("gadc", None), ("herding", None), ("full", None), ("random", 0), ("random", 1))
    }
    assert {(row["space"], row["split"]) for row in rows} == {
        *(("features", "pool"), ("features", "held-out"), ("judge", "pool"))
    }
    assert {row["measure"] for row in rows} == set(TITLES)
    assert all((row["value"] is None) == (row["note"] not in ("", "biased")) for row in rows)
    assert {row["better"] for row in rows} == {"lower", "higher"}
    result = json.loads((out / "comparison.json").read_text())
    assert result == ended.json
    means = {
        row["method"]: row["mean"]
        for row in result["table"]
        if (row["n_per_class"], row["space"], row["split"], row["measure"])
        == (5, "features", "pool", "transport")
    }
    assert means["gadc"] < means["random"]
    by_hand = [
        row["value"]
        for row in rows
        if (row["method"], row["n_per_class"], row["space"], row["split"], row["measure"])
        == ("random", 5, "features", "pool", "transport")
        and row["class_name"] == ""
    ]
    assert means["random"] == pytest.approx(np.mean(by_hand))
    assert not (out / "work").exists()


def test_compare_goes_on_and_does_nothing_twice(gadc: Gadc, tmp_path: Path, pool: Path) -> None:
    out = tmp_path / "out"
    asked = ("--methods", "random", "herding", "--per-class", 3, "--seeds", 2, "--out", out)
    assert gadc("compare", pool, *asked, "--json").json["runs"]["computed"] == 3
    first = numbers(out)
    (record,) = (out / "runs").glob("herding-*.json")
    record.write_text(record.read_text().replace("0", "1", 1))
    (lost,) = (out / "runs").glob("random-3-seed1-*.json")
    lost.unlink()
    again = gadc("compare", pool, *asked, "--json").json["runs"]
    assert again == {"computed": 2, "judged": 0, "reused": 1, "corrupt": 1}
    assert numbers(out) == first
    judge = write(tmp_path / "judge.safetensors", 15, seed=0, mix=True)
    judged = gadc("compare", pool, *asked, "--json", "--judge", judge).json["runs"]
    assert (judged["computed"], judged["judged"]) == (0, 3)


def test_killed_comparison_goes_on(tmp_path: Path, pool: Path, gadc: Gadc) -> None:
    asked = ("--methods", "random", "k-center", "--per-class", 3, "--seeds", 6)
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = spawn("compare", pool, *asked, "--out", out)
    wait_until(lambda: len(list((out / "runs").glob("[kr]*-seed*.json"))) >= 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    n_kept = len(list((out / "runs").glob("[kr]*-seed*.json")))
    assert 2 <= n_kept < 12
    assert not (out / "comparison.parquet").exists()
    runs = gadc("compare", pool, *asked, "--out", out, "--json").json["runs"]
    assert runs["reused"] == n_kept
    assert runs["computed"] == 12 - n_kept
    assert gadc("compare", pool, *asked, "--out", whole, "--workers", 2).code == 0
    assert numbers(out) == numbers(whole)


def test_holdout_and_scores(gadc: Gadc, tmp_path: Path, pool: Path) -> None:
    np.save(tmp_path / "scores.npy", np.arange(30.0))
    out = tmp_path / "out"
    ended = gadc(
        *("compare", pool, "--methods", "d2c", "--per-class", 2, "--holdout", 0.4, "--out", out),
        *("--scores", tmp_path / "scores.npy", "--measures", "energy", "mean-gap", "--json"),
    )
    assert ended.code == 0, ended.stderr
    data = ended.json["data"]
    assert data["n_images"] == 18
    assert data["spaces"][0]["n_held_out"] == 12
    assert data["difficulty"].startswith("given")
    assert {row["measure"] for row in rows_in(out)} == {"energy", "mean-gap"}
    assert {row["split"] for row in rows_in(out)} == {"pool", "held-out"}


def test_terminal_table_names_methods_and_who_is_ahead(
    gadc: Gadc, tmp_path: Path, pool: Path
) -> None:
    out = tmp_path / "out"
    asked = ("--methods", "gadc,random", "--per-class", "3", "--seeds", 2)
    ended = gadc("compare", pool, *asked, "--out", out, *QUICK)
    assert "3 per class, against the whole pool, in 'features' (selected in it)" in ended.stdout
    assert "peers ahead of gadc: " in ended.stdout
    assert "±" in ended.stdout


def test_unlabelled_images_leave_out_what_needs_classes(gadc: Gadc, tmp_path: Path) -> None:
    path = tmp_path / "bare.npy"
    np.save(path, np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32))
    asked = ("--per-class", 2, "--seeds", 1, "--json", *QUICK)
    ended = gadc("compare", path, "--out", tmp_path / "out", *asked)
    assert ended.code == 0, ended.stderr
    assert set(ended.json["left_out"]) == {"gadc-no-confidence", "ccs", "d2c", "confidence"}
    by_name = gadc("compare", path, "--methods", "ccs", "--out", tmp_path / "other", *asked)
    assert (by_name.code, by_name.error_code) == (2, "method_needs")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--methods", "k-centre"], "unknown_method"),
        (["--measures", "fid"], "unknown_measure"),
        (["--scores", "absent.npy"], "missing_source"),
        (["--judge", "absent.npz"], "missing_source"),
        (["--holdout", "1.5"], "holdout_range"),
        (["--judge-held-out", "pool.safetensors"], "held_out_choice"),
        (["--holdout", "0.2", "--held-out", "pool.safetensors"], "held_out_choice"),
        (["--seeds", "0"], "comparison_range"),
        (["--judge", "few.safetensors"], "judge_rows"),
        (["--held-out", "wide.npy"], "width_mismatch"),
        (["--held-out", "bare.npy"], "held_out_labels"),
        (["--judge", "folder"], "not_features"),
    ],
)
def test_bad_input_is_named(
    gadc: Gadc,
    tmp_path: Path,
    pool: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "few.safetensors", 14, seed=0)
    np.save(tmp_path / "wide.npy", np.ones((5, 9), dtype=np.float32))
    np.save(tmp_path / "bare.npy", np.ones((5, N_FEATURES), dtype=np.float32))
    (tmp_path / "folder").mkdir()
    asked = ("--methods", "random") if "--methods" not in options else ()
    ended = gadc("compare", pool, *asked, "--per-class", 2, "--out", tmp_path / "out", *options)
    assert (ended.code, ended.error_code) == (2, code), ended.stderr
