import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from feature_sets import quick
from gadc.condense import condense
from gadc.errors import InputError
from gadc.features.rows import ShardedRows
from gadc.features.shards import shard_paths
from gadc.features.store import load_features
from gadc.features.tensors import StoredTensor
from gadc.runs.inputs import is_features

N_ROWS, N_COLUMNS = 23, 5
GENERATOR = np.random.default_rng(5)
FEATURES = GENERATOR.normal(size=(N_ROWS, N_COLUMNS)).astype(np.float32)
LABELS = np.sort(GENERATOR.integers(0, 2, N_ROWS))
PROBABILITIES = GENERATOR.dirichlet([2.0, 1.0], N_ROWS).astype(np.float32)
CUTS = [7, 8, 8]  # the third shard is empty
ALL = {"features": FEATURES, "labels": LABELS, "probabilities": PROBABILITIES}


def write_shards(folder: Path, *names: str, cuts: list[int] = CUTS, **metadata: str) -> Path:
    folder.mkdir()
    divided = {name: np.split(ALL[name], cuts) for name in names}
    for number in range(len(cuts) + 1):
        tensors = {name: np.ascontiguousarray(parts[number]) for name, parts in divided.items()}
        save_file(tensors, folder / f"part-{number:05d}.safetensors", metadata or None)
    return folder


def write_whole(path: Path, *names: str, **metadata: str) -> Path:
    save_file({name: ALL[name] for name in names}, path, metadata or None)
    return path


@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(5, 12),
        slice(3, 3),
        np.arange(N_ROWS)[::-1],
        np.array([22, 0, 7, 7, 8]),
        np.array([], dtype=np.int64),
    ],
)
def test_sharded_rows_are_those_of_the_joined_array(rows) -> None:
    parts = [StoredTensor("F32", part) for part in np.split(FEATURES, CUTS)]
    sharded = ShardedRows(parts)
    assert (sharded.shape, len(sharded)) == (FEATURES.shape, N_ROWS)
    np.testing.assert_array_equal(sharded[rows], FEATURES[rows])


@pytest.mark.parametrize("rows", [[-1], [N_ROWS]])
def test_sharded_rows_out_of_range_are_refused(rows: list[int]) -> None:
    sharded = ShardedRows([StoredTensor("F32", FEATURES)])
    with pytest.raises(IndexError, match=str(N_ROWS)):
        sharded[np.array(rows)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_number_types_become_float32_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.from_numpy(np.rint(FEATURES * 8)).to(dtype)
    (tmp_path / "set").mkdir()
    for number, part in enumerate(values.split(9)):
        path = tmp_path / "set" / f"{number}.safetensors"
        save_torch_file({"features": part.contiguous()}, path)
    found = load_features(tmp_path / "set").features
    np.testing.assert_array_equal(found[:], values.float().numpy())
    assert found[:].dtype == np.float32


@pytest.mark.parametrize("names", [("features",), ("features", "labels"), tuple(ALL)])
@pytest.mark.parametrize("metadata", [{}, {"class_names": json.dumps(["cat", "dog"])}])
def test_shards_are_read_like_one_file(tmp_path: Path, names, metadata) -> None:
    one = load_features(write_whole(tmp_path / "one.safetensors", *names, **metadata))
    many = load_features(write_shards(tmp_path / "many", *names, **metadata))
    assert many.ids == one.ids
    assert many.class_names == one.class_names
    for name in ("features", "labels", "probabilities"):
        first, second = getattr(one, name), getattr(many, name)
        assert (first is None) == (second is None)
        if first is not None:
            np.testing.assert_allclose(second[:], first, rtol=1e-6)  # normalised when used


@pytest.mark.parametrize("options", [{}, {"probe": False}])
def test_selection_from_shards_is_that_from_one_file(tmp_path: Path, options) -> None:
    names = ("features", "labels")
    one = condense(load_features(write_whole(tmp_path / "one.safetensors", *names)), quick())
    many = condense(load_features(write_shards(tmp_path / "many", *names)), quick())
    assert many.paths == one.paths
    assert many.gain.tolist() == one.gain.tolist()


def test_selection_in_clusters_and_with_a_target_reads_shards(tmp_path: Path) -> None:
    one = load_features(write_whole(tmp_path / "one.safetensors", "features"))
    many = load_features(write_shards(tmp_path / "many", "features"))
    config = quick(clusters=3, per_class=2)
    assert condense(many, config).paths == condense(one, config).paths
    matched = quick(per_class=4)
    assert condense(one, matched, target=many).paths == condense(many, matched, target=one).paths


def test_given_probabilities_of_shards_are_used(tmp_path: Path) -> None:
    one = condense(load_features(write_whole(tmp_path / "one.safetensors", *ALL)), quick())
    many = condense(load_features(write_shards(tmp_path / "many", *ALL)), quick())
    assert many.provenance["confidence"] == "given"
    assert many.gain.tolist() == pytest.approx(one.gain.tolist(), rel=1e-6)


def test_folder_of_shards_is_known_as_features(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "many", "features")
    (folder / "model.index.json").write_text("{}")
    assert is_features(folder)
    assert len(shard_paths(folder)) == 4


@pytest.mark.parametrize("other", ["photo.jpg", "class/photo.jpg"])
def test_folder_with_anything_else_is_not_taken_for_shards(tmp_path: Path, other: str) -> None:
    folder = write_shards(tmp_path / "many", "features")
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_bytes(b"")
    assert not is_features(folder)


@pytest.mark.parametrize(
    ("tensors", "metadata", "code"),
    [
        ({"features": FEATURES[:, :3]}, {}, "shards_disagree"),
        ({"features": FEATURES, "labels": LABELS}, {}, "shards_disagree"),
        ({"features": FEATURES}, {"class_names": '["a"]'}, "shards_disagree"),
        ({"features": FEATURES[0]}, {}, "bad_shape"),
        ({"features": np.where(FEATURES > 2, np.nan, FEATURES)}, {}, "features_not_finite"),
    ],
)
def test_shard_that_does_not_belong_is_refused(tmp_path: Path, tensors, metadata, code) -> None:
    folder = write_shards(tmp_path / "many", "features")
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()},
        folder / "part-00009.safetensors",
        metadata or None,
    )
    with pytest.raises(InputError) as raised:
        load_features(folder)
    assert raised.value.code == code
    assert "part-00009" in str(raised.value)


@pytest.mark.parametrize(("name", "n_rows"), [("labels", 5), ("ids", 5), ("probabilities", 5)])
def test_column_of_another_length_is_refused(tmp_path: Path, name: str, n_rows: int) -> None:
    (tmp_path / "many").mkdir()
    column = PROBABILITIES[:n_rows] if name == "probabilities" else np.arange(n_rows)
    save_file({"features": FEATURES, name: column}, tmp_path / "many" / "a.safetensors")
    with pytest.raises(InputError) as raised:
        load_features(tmp_path / "many")
    assert raised.value.code == "length_mismatch"


def test_columns_that_only_agree_in_all_shards_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number, (n_rows, n_labels) in enumerate([(5, 3), (3, 5)]):
        save_file(
            {"features": FEATURES[:n_rows], "labels": LABELS[:n_labels]},
            tmp_path / "many" / f"{number}.safetensors",
        )
    with pytest.raises(InputError) as raised:
        load_features(tmp_path / "many")
    assert raised.value.code == "length_mismatch"
