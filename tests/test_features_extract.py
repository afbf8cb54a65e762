import concurrent.futures
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from features_helpers import (
    ColourEncoder,
    as_on_gpu,
    colour_on_gpu,
    folder_bytes,
    tiny_pixels,
    write_images,
)
from gadc.errors import InputError, RunError
from gadc.features import extract as extract_module
from gadc.features.encoders import load_encoder
from gadc.features.extract import FEW_BAD, extract
from gadc.features.forward import CPU_BLOCK_IMAGES, BlockForward
from gadc.features.store import load_features
from gadc.images.index import open_index
from real_data import REAL_DATA, needs_real_data


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def small_parts(monkeypatch):
    """Make parts of four rows, so that eighteen images need several."""
    monkeypatch.setattr(extract_module, "PART_ROWS", 4)


def test_extract_order_is_that_of_the_index(images, tmp_path):
    index = open_index(images)
    found = extract(index, ColourEncoder(), tmp_path / "out", batch_size=4)
    assert found.ids == index.ids
    assert found.class_names == ["blue", "green", "red"]
    one = np.asarray(Image.open(images / found.ids[7]).resize((8, 8)), dtype=np.float32)
    np.testing.assert_allclose(found.features[7, :3], one.mean(axis=(0, 1)), rtol=1e-6)


def test_extract_head_columns_follow_class_names(images, tmp_path):
    found = extract(open_index(images), ColourEncoder(), tmp_path / "out")
    # The head's order is red, green, blue; the data set's is alphabetical.
    np.testing.assert_array_equal(found.probabilities.argmax(axis=1), found.labels)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)


def test_extract_other_class_names_give_no_probabilities(images, tmp_path):
    encoder = ColourEncoder(["r", "g", "b"])
    found = extract(open_index(images), encoder, tmp_path / "out")
    assert found.probabilities is None


def test_extract_class_map_is_applied_without_computing_again(images, tmp_path):
    encoder = ColourEncoder(["r", "g", "b"])
    extract(open_index(images), encoder, tmp_path / "out")
    found = extract(
        open_index(images),
        encoder,
        tmp_path / "out",
        class_map={"red": "r", "green": ["g"], "blue": "b"},
    )
    assert found.run_counts["computed"] == 0
    np.testing.assert_array_equal(found.probabilities.argmax(axis=1), found.labels)


@pytest.mark.parametrize(("batch_size", "decode_workers"), [(1, 1), (3, 4), (64, 2)])
def test_extract_bytes_are_independent_of_batches_and_workers(
    images, tmp_path, small_parts, batch_size, decode_workers
):
    index = open_index(images)
    extract(index, tiny_pixels(), tmp_path / "a", batch_size=5)
    extract(
        index,
        tiny_pixels(),
        tmp_path / "b",
        batch_size=batch_size,
        decode_workers=decode_workers,
    )
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_extract_again_computes_nothing_and_changes_nothing(images, tmp_path):
    out = tmp_path / "out"
    extract(open_index(images), ColourEncoder(), out)
    before = folder_bytes(out)
    encoder = ColourEncoder()
    found = extract(open_index(images), encoder, out)
    assert encoder.n_encoded == 0
    assert found.run_counts == {"computed": 0, "reused": 18, "corrupt": 0}
    assert folder_bytes(out) == before


@pytest.mark.parametrize("make_encoder", [colour_on_gpu, tiny_pixels])
def test_extract_after_an_edit_equals_a_fresh_run(images, tmp_path, make_encoder):
    out = tmp_path / "out"
    extract(open_index(images), make_encoder(), out)
    edited = images / "red" / "002.png"
    status = edited.stat()
    Image.fromarray(np.full((12, 12, 3), 7, np.uint8)).save(edited)
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    (images / "green" / "000.png").unlink()
    shutil.copy(images / "blue" / "001.png", images / "blue" / "added.png")
    found = extract(open_index(images), make_encoder(), out)
    assert found.run_counts == {"computed": 1, "reused": 17, "corrupt": 0}
    extract(open_index(images), make_encoder(), tmp_path / "fresh")
    assert folder_bytes(out) == folder_bytes(tmp_path / "fresh")


def test_extract_copies_are_computed_once(images, tmp_path):
    for number in range(3):
        shutil.copy(images / "red" / "001.png", images / "red" / f"copy{number}.png")
    found = extract(open_index(images), ColourEncoder(), tmp_path / "out", batch_size=2)
    assert found.run_counts["computed"] == 18
    row = found.ids.index("red/001.png")
    np.testing.assert_array_equal(
        found.features[row], found.features[found.ids.index("red/copy2.png")]
    )


def test_extract_other_encoder_never_mixes(images, tmp_path):
    out = tmp_path / "out"
    extract(open_index(images), ColourEncoder(version=1), out)
    shutil.rmtree(images / "red")
    found = extract(open_index(images), ColourEncoder(version=2), out)
    assert found.run_counts["computed"] == 12
    extract(open_index(images), ColourEncoder(version=2), tmp_path / "fresh")
    assert folder_bytes(out) == folder_bytes(tmp_path / "fresh")


def test_extract_pixels_to_other_encoder_leaves_no_rows(images, tmp_path):
    out = tmp_path / "out"
    extract(open_index(images), tiny_pixels(), out)
    extract(open_index(images), ColourEncoder(), out)
    assert not (out / "rows.safetensors").exists()


def test_extract_reconciles_every_item(images, tmp_path):
    (images / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rest is missing")
    (images / "notes.txt").write_text("not an image")
    index = open_index(images)
    found = extract(index, ColourEncoder(), tmp_path / "out")
    assert found.n_scanned == found.n_images + len(found.quarantined) + len(found.excluded)
    assert [item.path for item in found.quarantined] == ["red/broken.png"]
    assert len(found.quarantined[0].sha256) == 64
    assert [item.path for item in found.excluded] == ["notes.txt"]


def test_extract_too_many_bad_keeps_what_is_computed(images, tmp_path):
    for number in range(FEW_BAD + 1):
        (images / "red" / f"z{number:02}.png").write_bytes(b"<html>404</html>")
    out = tmp_path / "out"
    with pytest.raises(InputError, match="max_bad") as caught:
        extract(open_index(images), colour_on_gpu(), out, batch_size=4)
    assert caught.value.code == "too_many_bad"
    found = extract(open_index(images), colour_on_gpu(), out, max_bad=0.8)
    assert found.run_counts["reused"] > 0


def test_extract_one_bad_class_is_too_many(images, tmp_path):
    for number in range(200):
        Image.new("RGB", (4, 4), (number, 3, 9)).save(images / "blue" / f"more{number}.png")
    for number in range(FEW_BAD + 1):
        (images / "red" / f"z{number:02}.png").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="class 'red'"):
        extract(open_index(images), ColourEncoder(), tmp_path / "out", max_bad=0.1)


def test_extract_on_error_fail_names_the_image(images, tmp_path):
    (images / "red" / "000.png").write_bytes(b"")
    with pytest.raises(InputError, match="red/000.png") as caught:
        extract(open_index(images), ColourEncoder(), tmp_path / "out", on_error="fail")
    assert caught.value.code == "bad_image"


def test_extract_refuses_output_inside_input(images):
    with pytest.raises(InputError) as caught:
        extract(open_index(images), ColourEncoder(), images / "features")
    assert caught.value.code == "output_inside_input"


def test_extract_without_one_good_image_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no")
    with pytest.raises(InputError) as caught:
        extract(open_index(tmp_path / "images"), ColourEncoder(), tmp_path / "out", max_bad=1.0)
    assert caught.value.code == "no_images"


class _NanEncoder(ColourEncoder):
    def encode(self, batch):
        features, heads = super().encode(batch)
        features[0, 1] = np.nan
        return features, heads


def test_extract_nan_from_the_encoder_names_the_image(images, tmp_path):
    with pytest.raises(RunError, match="blue/000.png") as caught:
        extract(open_index(images), _NanEncoder(), tmp_path / "out")
    assert caught.value.code == "features_not_finite"


class _SmallMemoryEncoder(ColourEncoder):
    """Runs out of memory above `n_fitting` images."""

    def __init__(self, n_fitting):
        super().__init__()
        as_on_gpu(self)
        self.n_fitting = n_fitting

    def encode(self, batch):
        if len(batch) > self.n_fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(batch)


def test_extract_halves_the_batch_when_memory_runs_out(images, tmp_path):
    small = extract(open_index(images), _SmallMemoryEncoder(3), tmp_path / "a")
    large = extract(open_index(images), colour_on_gpu(), tmp_path / "b")
    np.testing.assert_array_equal(small.features, large.features)


def test_extract_one_image_beyond_memory_is_an_error(images, tmp_path):
    with pytest.raises(RunError) as caught:
        extract(open_index(images), _SmallMemoryEncoder(0), tmp_path / "out")
    assert caught.value.code == "out_of_memory"


def test_forward_always_sees_one_batch_shape():
    shapes = set()

    class Recorder(ColourEncoder):
        def encode(self, batch):
            shapes.add(batch.shape)
            return super().encode(batch)

    with BlockForward(Recorder(), batch_size=7) as forward:
        for n_images in (1, 16, 37):
            rows, heads = forward(np.zeros((n_images, 8, 8, 3), np.float32))
            assert len(rows) == len(heads) == n_images
    assert shapes == {(CPU_BLOCK_IMAGES, 8, 8, 3)}


def test_extract_features_and_file_agree_on_load(images, tmp_path):
    out = tmp_path / "out"
    found = extract(open_index(images), ColourEncoder(), out)
    as_file = load_features(out / "features.safetensors")
    np.testing.assert_array_equal(as_file.features, found.features)
    np.testing.assert_array_equal(as_file.labels, found.labels)
    assert as_file.class_names == found.class_names


@needs_real_data
def test_extract_cifar_resnet_reproduces_reference_features(tmp_path):
    import pyarrow.parquet
    from safetensors.numpy import load_file

    table = pyarrow.parquet.read_table(REAL_DATA / "cifar10" / "test.parquet")
    rows = np.arange(0, len(table), 40)
    pyarrow.parquet.write_table(table.take(rows), tmp_path / "some.parquet")
    encoder = load_encoder(
        "cifar10-resnet56", weights=REAL_DATA / "cifar10" / "resnet56.safetensors", device="cpu"
    )
    found = extract(open_index(tmp_path / "some.parquet"), encoder, tmp_path / "out")
    reference = load_file(REAL_DATA / "cifar10" / "test_resnet56_features.safetensors")
    np.testing.assert_allclose(found.features, reference["features"][rows], atol=1e-3)
    np.testing.assert_allclose(found.probabilities, reference["probabilities"][rows], atol=1e-3)
    np.testing.assert_array_equal(found.labels, reference["labels"][rows])


def test_extract_leaves_the_threads_of_torch_alone(images, tmp_path):
    n_threads = torch.get_num_threads()
    extract(open_index(images), ColourEncoder(), tmp_path / "out")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == n_threads
    assert torch.get_num_threads() == n_threads
