import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

from features_helpers import ColourEncoder, folder_bytes, tiny_pixels, write_images
from gadc.errors import GadcError, InputError, RunError
from gadc.features.extract import extract
from gadc.features.store import escape_name, load_features, unescape_name
from gadc.features.tensors import TensorWriter, map_tensors
from gadc.images.index import open_index
from gadc.storage import digest


@pytest.fixture
def finished(tmp_path):
    images = write_images(tmp_path / "images")
    extract(open_index(images), ColourEncoder(), tmp_path / "out")
    return tmp_path / "out"


def test_load_gives_what_extract_gave(tmp_path):
    images = write_images(tmp_path / "images")
    (images / "red" / "bad.png").write_bytes(b"x")
    (images / ".hidden").write_bytes(b"x")
    made = extract(open_index(images), ColourEncoder(), tmp_path / "out", max_bad=0.5)
    found = load_features(tmp_path / "out")
    for name in ("ids", "class_names", "sha256", "paths", "excluded", "quarantined", "n_scanned"):
        assert getattr(found, name) == getattr(made, name), name
    for name in ("features", "labels", "probabilities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert found.provenance == made.provenance


def test_load_maps_features_instead_of_reading_them(finished):
    found = load_features(finished)
    assert not found.features.flags.writeable
    assert not found.features.flags.owndata


def test_load_lists_the_rows_of_a_class(finished):
    found = load_features(finished)
    assert [found.ids[row] for row in found.class_rows(1)] == [
        name for name in found.ids if name.startswith("green/")
    ]


def test_unlabelled_images_are_one_class(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    found = extract(open_index(tmp_path / "images"), tiny_pixels(), tmp_path / "out")
    assert found.labels is None
    assert found.probabilities is None
    assert load_features(tmp_path / "out").class_rows(0).tolist() == [0, 1, 2]


def test_unfinished_folder_is_an_error(finished):
    (finished / "features.json").unlink()
    with pytest.raises(InputError) as caught:
        load_features(finished)
    assert caught.value.code == "not_finished"


def test_other_schema_is_an_error(finished):
    summary = json.loads((finished / "features.json").read_text())
    del summary["digest"]
    summary["schema"] = 99
    (finished / "features.json").write_text(json.dumps({**summary, "digest": digest(summary)}))
    with pytest.raises(InputError, match="schema 99") as caught:
        load_features(finished)
    assert caught.value.code == "schema_version"


def test_every_flipped_byte_is_noticed(finished):
    # Goal: no silent wrong read. A flip may leave the meaning as it is (white space in JSON).
    expected = load_features(finished)
    rng = np.random.default_rng(5)
    n_noticed = 0
    for name, content in folder_bytes(finished).items():
        for place in rng.choice(len(content), 60, replace=False):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            (finished / name).write_bytes(flipped)
            try:
                found = load_features(finished)
            except GadcError:
                n_noticed += 1
            else:
                assert name == "features.json"
                assert found.provenance == expected.provenance
                assert found.class_names == expected.class_names
        (finished / name).write_bytes(content)
    assert n_noticed > 200


@pytest.mark.parametrize("n_bytes", [0, 7, 100])
@pytest.mark.parametrize("name", ["features.safetensors", "items.parquet", "features.json"])
def test_truncated_file_is_noticed(finished, name, n_bytes):
    content = (finished / name).read_bytes()
    (finished / name).write_bytes(content[:n_bytes])
    with pytest.raises(RunError) as caught:
        load_features(finished)
    assert caught.value.code == "corrupt"


def test_tables_read_with_pandas_alike(finished):
    items = pq.read_table(finished / "items.parquet").to_pydict()
    assert items["class_name"][0] == "blue"
    assert items["label"][0] == 0
    assert items["flags"][0] == "tiny"


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes")
def test_undecodable_names_survive(tmp_path):
    (tmp_path / "images" / "a\\b").mkdir(parents=True)
    raw = os.fsencode(tmp_path / "images" / "a\\b") + b"/caf\xe9 \xf0\x9f\x98\x80\n.png"
    Image.new("RGB", (20, 20)).save(tmp_path / "plain.png")
    os.rename(os.fsencode(tmp_path / "plain.png"), raw)
    made = extract(open_index(tmp_path / "images"), ColourEncoder(), tmp_path / "out")
    found = load_features(tmp_path / "out")
    assert found.ids == made.ids == ["a\\b/caf\udce9 \U0001f600\n.png"]
    assert found.class_names == ["a\\b"]
    assert os.fsencode(found.paths[0]) == raw


@pytest.mark.parametrize("name", ["a\\x80", "\udc80", "\\", "\\\\x41", "\udcff\\\udc80x", "é"])
def test_escaped_name_is_unicode_and_comes_back(name):
    escaped = escape_name(name)
    escaped.encode("utf-8")
    assert unescape_name(escaped) == name


def test_tensor_writer_is_read_by_the_library(tmp_path):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    shapes = {"labels": ((4,), np.dtype("<i8")), "features": ((4, 3), np.dtype("<f4"))}
    with TensorWriter(tmp_path / "f.safetensors", shapes, {"a": "b"}) as file:
        file.append("features", features[:1])
        file.append("labels", np.arange(4))
        file.append("features", features[1:])
    found = load_file(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(found["features"], features)
    np.testing.assert_array_equal(found["labels"], np.arange(4))
    tensors, metadata = map_tensors(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(tensors["features"].values, features)
    assert metadata == {"a": "b"}


@pytest.mark.parametrize("n_rows", [3, 5])
def test_tensor_writer_refuses_another_number_of_rows(tmp_path, n_rows):
    writer = TensorWriter(tmp_path / "f", {"x": ((4,), np.dtype("<f4"))}, {})
    with pytest.raises(ValueError, match="rows than"), writer as file:
        file.append("x", np.zeros(n_rows))
