import dataclasses
import errno
import math
import os
import random
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import gadc.subset
from gadc import storage
from gadc.errors import GadcError, InputError, RunError
from gadc.subset import SUBSET_NAME, Subset

N_FLIPS = 600
N_CUTS = 60
ODD_NAMES = [
    "plain.png",
    "caf\udce9.png",
    "back\\slash",
    "new\nline\ttab",
    "a\\xe9",
    "\U0001f41f.png",
]


def made_subset(names: list[str] = ODD_NAMES) -> Subset:
    n = len(names)
    return Subset(
        index=np.arange(n, dtype=np.int64)[::-1].copy(),
        paths=names,
        sha256=[None if row % 3 == 2 else f"{row:064x}" for row in range(n)],
        labels=(np.arange(n) // 3).astype(np.int32),
        class_name=["../train" if row < 3 else "k\udcffse" for row in range(n)],
        rank=(np.arange(n) % 3).astype(np.int32),
        gain=np.linspace(-1.0, 1 / 3, n),
        weight=np.full(n, 1e3 / 7),
        source=["photos\udcfe"] * n,
        provenance={
            "n_scanned": 12,
            "n_pool": 9,
            "n_quarantined": 2,
            "n_excluded": 1,
            "classes": [{"class_name": "k\udcffse", "objective": 0.1}],
        },
    )


def rows_of(subset: Subset) -> list[object]:
    return [
        value.tolist() if isinstance(value, np.ndarray) else value
        for value in (getattr(subset, field.name) for field in dataclasses.fields(subset)[:9])
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return made_subset().save(tmp_path / SUBSET_NAME)


def test_round_trip_keeps_every_column_and_odd_names(saved: Path):
    assert rows_of(Subset.load(saved)) == rows_of(made_subset())


def test_round_trip_keeps_types(saved: Path):
    found = Subset.load(saved)
    assert [found.index.dtype, found.labels.dtype, found.rank.dtype] == [
        np.int64,
        np.int32,
        np.int32,
    ]


def test_round_trip_keeps_provenance(saved: Path):
    found = Subset.load(saved).provenance
    assert {key: found[key] for key in made_subset().provenance} == made_subset().provenance


def test_loaded_subset_saves_to_the_same_bytes(saved: Path, tmp_path: Path):
    again = Subset.load(saved).save(tmp_path / "again.parquet")
    assert again.read_bytes() == saved.read_bytes()


def test_folder_stands_for_the_file_in_it(saved: Path):
    assert made_subset().save(saved.parent) == saved
    assert rows_of(Subset.load(saved.parent)) == rows_of(Subset.load(saved))


def test_other_programs_read_plain_columns(saved: Path):
    table = pyarrow.parquet.read_table(saved)
    assert table.column_names == [
        "index", "path", "sha256", "label", "class_name", "rank", "gain", "weight", "source",
    ]  # fmt: skip
    assert table["path"].to_pylist()[:3] == ["plain.png", r"caf\xe9.png", r"back\\slash"]


def test_reconciliation_is_one_line():
    assert made_subset().reconciliation == "12 scanned = 9 in the pool + 2 quarantined + 1 excluded"


def test_counts_that_do_not_add_up_are_not_saved(tmp_path: Path):
    subset = made_subset()
    subset.provenance["n_pool"] = 8
    with pytest.raises(InputError, match="12 scanned = 8") as raised:
        subset.save(tmp_path / SUBSET_NAME)
    assert raised.value.code == "not_reconciled"
    assert not list(tmp_path.iterdir())


def test_missing_subset_is_bad_input(tmp_path: Path):
    with pytest.raises(InputError) as raised:
        Subset.load(tmp_path)
    assert raised.value.code == "subset_missing"


@pytest.mark.parametrize("content", [b"", b"PAR", b"path,label\n"])
def test_other_files_are_no_subset(tmp_path: Path, content: bytes):
    (tmp_path / "paths.csv").write_bytes(content)
    with pytest.raises(InputError) as raised:
        Subset.load(tmp_path / "paths.csv")
    assert raised.value.code == "not_a_subset"


def test_other_parquet_is_no_subset(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError) as raised:
        Subset.load(tmp_path / "other.parquet")
    assert raised.value.code == "not_a_subset"


def test_other_schema_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gadc.subset, "SCHEMA_VERSION", 0)
    path = made_subset().save(tmp_path / SUBSET_NAME)
    monkeypatch.undo()
    with pytest.raises(InputError, match="schema 0, this gadc reads 1") as raised:
        Subset.load(path)
    assert raised.value.code == "subset_schema"


def test_other_columns_are_named(saved: Path):
    table = pyarrow.parquet.read_table(saved)
    pyarrow.parquet.write_table(table.drop_columns(["weight"]), saved)
    with pytest.raises(InputError, match="weight") as raised:
        Subset.load(saved)
    assert raised.value.code == "subset_schema"


def test_changed_rows_are_corrupt_even_with_right_checksums(saved: Path):
    table = pyarrow.parquet.read_table(saved)
    changed = pyarrow.array([2.0] * len(table))
    column = table.column_names.index("weight")
    pyarrow.parquet.write_table(table.set_column(column, "weight", changed), saved)
    with pytest.raises(RunError) as raised:
        Subset.load(saved)
    assert raised.value.code == "corrupt"


def test_flipped_bytes_never_give_other_rows(saved: Path):
    content, expected = saved.read_bytes(), rows_of(made_subset())
    generator = random.Random(0)
    places = generator.sample(range(len(content)), min(N_FLIPS, len(content)))
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(flipped)
        try:
            found = Subset.load(saved)
        except GadcError:
            continue
        assert rows_of(found) == expected, f"byte {place}"


def test_truncated_file_is_an_error(saved: Path):
    content = saved.read_bytes()
    for n_bytes in np.linspace(0, len(content) - 1, N_CUTS).astype(int):
        saved.write_bytes(content[:n_bytes])
        with pytest.raises(GadcError):
            Subset.load(saved)


def test_full_disk_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError) as raised:
        made_subset(["other.png"]).save(saved)
    assert raised.value.code == "disk_full"
    assert [path.name for path in saved.parent.iterdir()] == [SUBSET_NAME]
    assert saved.read_bytes() == before


def test_wait_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised, storage.exclusive(tmp_path, wait_seconds=math.nan):
        pass
    assert raised.value.code == "bad_argument"


def test_full_disk_at_the_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunError) as raised, storage.exclusive(tmp_path):
            pass
    assert raised.value.code == "disk_full"
    with storage.exclusive(tmp_path):
        pass


@pytest.mark.parametrize("name", ["x" * 250, "\U0001f600" * 62, "\udcff" * 250])
def test_long_names_are_written(tmp_path: Path, name: str):
    storage.write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
