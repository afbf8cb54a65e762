import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file
from safetensors.torch import save_file as save_torch_file

from gadc.errors import GadcError, InputError
from gadc.features.formats import read_feature_file
from gadc.features.store import load_features
from gadc.features.tensors import MAX_HEADER_BYTES

N_ROWS, N_COLUMNS = 12, 3
FEATURES = np.random.default_rng(3).normal(size=(N_ROWS, N_COLUMNS)).astype(np.float32)
LABELS = np.arange(N_ROWS) % 2
PROBABILITIES = np.tile(np.float32([0.25, 0.75]), (N_ROWS, 1))


class Canary:
    """Leaves a folder behind if anybody unpickles it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write(path, **arrays):
    """Write arrays in the format that the suffix says."""
    if path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["features"])
    else:
        columns = {name: list(array) for name, array in arrays.items()}
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".parquet"])
def test_read_all_columns(tmp_path, suffix):
    path = write(
        tmp_path / f"f{suffix}", features=FEATURES, labels=LABELS, probabilities=PROBABILITIES
    )
    found = read_feature_file(path)
    np.testing.assert_array_equal(found.features, FEATURES)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.probabilities, PROBABILITIES)
    assert found.class_names == ["0", "1"]


def test_read_npy(tmp_path):
    found = read_feature_file(write(tmp_path / "f.npy", features=FEATURES))
    np.testing.assert_array_equal(found.features, FEATURES)
    assert found.labels is None
    assert isinstance(found.features, np.memmap)


def test_read_safetensors_stays_on_disk(tmp_path):
    found = read_feature_file(write(tmp_path / "f.safetensors", features=FEATURES))
    assert not found.features.flags.owndata
    assert not found.features.flags.writeable


@pytest.mark.parametrize("dtype", ["f8", "f2", "i4", "u1"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy"])
def test_read_casts_numbers_to_float32(tmp_path, dtype, suffix):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    found = read_feature_file(write(tmp_path / f"f{suffix}", features=values))
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.features, values)


def test_read_casts_bfloat16(tmp_path):
    values = torch.from_numpy(FEATURES).bfloat16()
    save_torch_file({"features": values}, tmp_path / "f.safetensors")
    found = read_feature_file(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(found.features, values.float().numpy())


def test_read_fortran_order(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(FEATURES))
    found = read_feature_file(tmp_path / "f.npy")
    assert found.features.flags.c_contiguous
    np.testing.assert_array_equal(found.features, FEATURES)


def test_read_parquet_numbered_columns(tmp_path):
    columns = {f"f{k}": FEATURES[:, k] for k in range(N_COLUMNS)}
    ids = [f"image {row}" for row in range(N_ROWS)]
    pq.write_table(pa.table({**columns, "label": LABELS, "id": ids}), tmp_path / "f.parquet")
    found = read_feature_file(tmp_path / "f.parquet")
    np.testing.assert_array_equal(found.features, FEATURES)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.ids == ids


def test_read_parquet_fixed_size_lists_across_row_groups(tmp_path):
    values = pa.FixedSizeListArray.from_arrays(pa.array(FEATURES.ravel()), N_COLUMNS)
    pq.write_table(pa.table({"features": values}), tmp_path / "f.parquet", row_group_size=5)
    np.testing.assert_array_equal(read_feature_file(tmp_path / "f.parquet").features, FEATURES)


def test_read_string_labels_become_sorted_names(tmp_path):
    names = np.array(["dog", "cat", "dog", "ant"] * 3)
    found = read_feature_file(write(tmp_path / "f.npz", features=FEATURES, labels=names))
    assert found.class_names == ["ant", "cat", "dog"]
    assert [found.class_names[label] for label in found.labels] == names.tolist()


def test_read_integer_labels_are_named_by_themselves(tmp_path):
    labels = np.array([7, 3, 7, 40] * 3)
    found = read_feature_file(write(tmp_path / "f.npz", features=FEATURES, labels=labels))
    assert found.class_names == ["3", "7", "40"]
    assert [int(found.class_names[label]) for label in found.labels] == labels.tolist()


def test_read_class_names_from_metadata(tmp_path):
    names = {"class_names": json.dumps(["cat", "dog"])}
    save_file({"features": FEATURES, "labels": LABELS}, tmp_path / "f.safetensors", names)
    assert read_feature_file(tmp_path / "f.safetensors").class_names == ["cat", "dog"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt", ".joblib"])
def test_pickle_is_refused_by_suffix(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(InputError) as caught:
        load_features(path)
    assert caught.value.code == "pickle_refused"
    assert not (tmp_path / "canary").exists()


def _objects_npy(canary):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("disguise", ["pickle.npy", "objects.npy", "objects.npz", "torch.npz"])
def test_pickle_is_refused_by_content(tmp_path, disguise):
    canary, path = tmp_path / "canary", tmp_path / disguise
    if disguise == "pickle.npy":
        path.write_bytes(pickle.dumps(Canary(canary)))
    elif disguise == "objects.npy":
        path.write_bytes(_objects_npy(canary))
    elif disguise == "objects.npz":
        np.savez(path, features=FEATURES, ids=np.array([Canary(canary)] * 12, dtype=object))
    else:
        torch.save({"features": Canary(canary)}, path)
    with pytest.raises(InputError) as caught:
        load_features(path)
    assert caught.value.code == "pickle_refused"
    assert not canary.exists()


def test_pickle_as_labels_is_refused(tmp_path):
    (tmp_path / "labels.npy").write_bytes(_objects_npy(tmp_path / "canary"))
    features = write(tmp_path / "f.npy", features=FEATURES)
    with pytest.raises(InputError) as caught:
        load_features(features, labels=tmp_path / "labels.npy")
    assert caught.value.code == "pickle_refused"
    assert not (tmp_path / "canary").exists()


def test_pickle_word_in_the_data_is_no_object_array(tmp_path):
    values = np.frombuffer(b"'O''|O'." * 6, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(
        read_feature_file(write(tmp_path / "f.npy", features=values)).features, values
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy", ".parquet"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_rows(tmp_path, suffix, bad):
    values = FEATURES.copy()
    values[[2, 9], 1] = bad
    with pytest.raises(InputError, match="rows 2, 9;") as caught:
        read_feature_file(write(tmp_path / f"f{suffix}", features=values))
    assert caught.value.code == "features_not_finite"


def test_not_finite_names_ten_rows_at_most(tmp_path):
    values = np.full((40, 2), np.nan)
    with pytest.raises(InputError, match="rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more"):
        read_feature_file(write(tmp_path / "f.npy", features=values))


def test_beyond_float32_is_not_finite(tmp_path):
    with pytest.raises(InputError) as caught:
        read_feature_file(write(tmp_path / "f.npy", features=np.full((2, 2), 1e39)))
    assert caught.value.code == "features_not_finite"


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("name", ["labels", "probabilities", "ids"])
def test_length_mismatch_is_an_error(tmp_path, suffix, name):
    other = {"labels": LABELS, "probabilities": PROBABILITIES, "ids": np.arange(N_ROWS)}[name][:-1]
    with pytest.raises(InputError, match="11") as caught:
        read_feature_file(write(tmp_path / f"f{suffix}", features=FEATURES, **{name: other}))
    assert caught.value.code == "length_mismatch"


def test_probabilities_within_tolerance_are_renormalised(tmp_path):
    path = write(tmp_path / "f.npz", features=FEATURES, probabilities=PROBABILITIES * 1.0009)
    total = read_feature_file(path).probabilities.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(total, 1, atol=1e-7)


@pytest.mark.parametrize("bad", [PROBABILITIES * 1.01, PROBABILITIES - [[0.3, -0.3]]])
def test_probabilities_that_are_none_are_an_error(tmp_path, bad):
    with pytest.raises(InputError) as caught:
        read_feature_file(write(tmp_path / "f.npz", features=FEATURES, probabilities=bad))
    assert caught.value.code == "probabilities_not_normalised"


def test_probabilities_may_hold_zeros_and_negative_zeros(tmp_path):
    values = np.tile(np.float32([1, -0.0]), (N_ROWS, 1))
    found = read_feature_file(write(tmp_path / "f.npz", features=FEATURES, probabilities=values))
    assert not np.signbit(found.probabilities).any()


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (LABELS - 1, "label_out_of_range"),
        (LABELS + 0.5, "bad_labels"),
        (LABELS.astype(complex), "bad_labels"),
        (LABELS[:, None], "bad_shape"),
    ],
)
def test_labels_that_are_none_are_an_error(tmp_path, labels, code):
    with pytest.raises(InputError) as caught:
        read_feature_file(write(tmp_path / "f.npz", features=FEATURES, labels=labels))
    assert caught.value.code == code


def test_label_beyond_the_columns_of_probabilities_is_an_error(tmp_path):
    path = write(
        tmp_path / "f.npz", features=FEATURES, labels=LABELS + 1, probabilities=PROBABILITIES
    )
    with pytest.raises(InputError) as caught:
        read_feature_file(path)
    assert caught.value.code == "label_out_of_range"


@pytest.mark.parametrize(
    "values",
    [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2))],
    ids=["vector", "no rows", "no columns", "cube"],
)
def test_features_must_be_a_matrix(tmp_path, values):
    with pytest.raises(InputError) as caught:
        read_feature_file(write(tmp_path / "f.npy", features=values))
    assert caught.value.code == "bad_shape"


def test_features_must_be_real_numbers(tmp_path):
    with pytest.raises(InputError) as caught:
        read_feature_file(write(tmp_path / "f.npy", features=FEATURES.astype(complex)))
    assert caught.value.code == "not_numbers"


def test_ragged_parquet_is_an_error(tmp_path):
    pq.write_table(pa.table({"features": [[1.0, 2.0], [3.0]]}), tmp_path / "f.parquet")
    with pytest.raises(InputError) as caught:
        read_feature_file(tmp_path / "f.parquet")
    assert caught.value.code == "ragged_features"


def test_zip_bomb_is_refused_by_its_declared_size(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "f.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(1100):
            member.write(bytes(1 << 20))
    with pytest.raises(InputError) as caught:
        read_feature_file(tmp_path / "f.npz")
    assert caught.value.code == "too_large"


def test_parquet_bomb_is_refused_by_its_declared_rows(tmp_path):
    n_rows = 50_000_000
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(n_rows, np.int32)), pa.array(np.float32([1]))
    )
    table = pa.table({f"f{k}": column for k in range(6)})
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=n_rows)
    assert (tmp_path / "f.parquet").stat().st_size < 1 << 20
    with pytest.raises(InputError) as caught:
        read_feature_file(tmp_path / "f.parquet")
    assert caught.value.code == "too_large"


def test_safetensors_header_is_limited(tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")
    with pytest.raises(InputError) as caught:
        read_feature_file(path)
    assert caught.value.code == "header_too_large"


def test_npy_that_declares_more_than_it_holds_is_an_error(tmp_path):
    path = write(tmp_path / "f.npy", features=FEATURES)
    path.write_bytes(path.read_bytes().replace(b"(12, 3)", b"(99, 3)"))
    with pytest.raises(InputError) as caught:
        read_feature_file(path)
    assert caught.value.code == "unreadable_features"


def test_unknown_suffix_lists_the_valid_ones(tmp_path):
    with pytest.raises(InputError, match=r"\.safetensors, \.npz, \.npy, \.parquet"):
        load_features(tmp_path / "features.csv")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="not there"):
        load_features(tmp_path / "none.npy")


def test_labels_from_a_text_file(tmp_path):
    features = write(tmp_path / "f.npy", features=FEATURES)
    (tmp_path / "labels.txt").write_text("\n".join(["cat", "dog"] * 6) + "\n")
    found = load_features(features, labels=tmp_path / "labels.txt")
    assert found.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(found.labels, LABELS)


def test_labels_of_another_length_are_an_error(tmp_path):
    features = write(tmp_path / "f.npy", features=FEATURES)
    np.save(tmp_path / "labels.npy", LABELS[:, None][:5])
    with pytest.raises(InputError) as caught:
        load_features(features, labels=tmp_path / "labels.npy")
    assert caught.value.code == "length_mismatch"


def test_duplicate_ids_are_an_error(tmp_path):
    path = write(tmp_path / "f.npz", features=FEATURES, ids=np.array(["same"] * N_ROWS))
    with pytest.raises(InputError) as caught:
        load_features(path)
    assert caught.value.code == "duplicate_ids"


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy", ".parquet"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_file_is_read_or_refused(tmp_path, suffix, data):
    path = write(tmp_path / f"f{suffix}", features=FEATURES, labels=LABELS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_feature_file(path)
    except GadcError:
        return
    assert np.isfinite(found.features).all()


def test_safetensors_bytes_do_not_depend_on_the_library(tmp_path):
    # The library and gadc's own writer are read alike.
    (tmp_path / "f.safetensors").write_bytes(save({"features": FEATURES}))
    np.testing.assert_array_equal(read_feature_file(tmp_path / "f.safetensors").features, FEATURES)
