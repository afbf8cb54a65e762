import hashlib
import zipfile

import numpy as np
import pytest

from evaluation_helpers import noise_images, write_pngs
from gadc.errors import InputError
from gadc.images.arrays import index_arrays, read_array, stored_arrays
from gadc.images.decode import decode
from gadc.images.index import open_index
from gadc.images.part import part_of


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(tmp_path, save):
    rng = np.random.default_rng(1)
    written = {
        "arr_0": noise_images(4),
        "sigma": np.asfortranarray(rng.standard_normal((3, 5))),
        "empty": np.zeros((0, 3)),
    }
    save(tmp_path / "a.npz", **written)
    stored = stored_arrays(tmp_path / "a.npz")
    assert set(stored) == set(written)
    for name, expected in written.items():
        np.testing.assert_array_equal(read_array(tmp_path / "a.npz", stored[name]), expected)
    is_mapped = isinstance(read_array(tmp_path / "a.npz", stored["arr_0"]), np.memmap)
    assert is_mapped == (save is np.savez)


def test_images_of_an_array_decode_to_their_pixels(tmp_path):
    images = noise_images(3)
    np.savez(tmp_path / "a.npz", images)
    index = index_arrays(tmp_path / "a.npz")
    assert index.ids == ["a.npz#0", "a.npz#1", "a.npz#2"]
    for position, expected in enumerate(images):
        found = decode(index.read(position))
        np.testing.assert_array_equal(np.asarray(found.image), expected)


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_arrays_of_objects_are_refused_and_not_run(tmp_path):
    canary = tmp_path / "ran"
    np.savez(tmp_path / "a.npz", arr_0=np.array([_Canary(canary)], dtype=object))
    with pytest.raises(InputError) as caught:
        index_arrays(tmp_path / "a.npz")
    assert caught.value.code == "pickle_refused"
    assert not canary.exists()


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 3, 3)), np.zeros((2, 3, 3), np.uint8), np.zeros((0, 3, 3, 3), "u1")]
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(InputError) as caught:
        index_arrays(tmp_path / "a.npz")
    assert caught.value.code == "bad_shape"


@pytest.mark.parametrize("damage", ["cut", "no zip", "not an array", "too short"])
def test_broken_files_are_input_errors(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez(path, noise_images(2))
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no zip":
        path.write_bytes(b"nothing")
    else:
        with zipfile.ZipFile(path) as archive:
            member = archive.read("arr_0.npy")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", b"text" if damage == "not an array" else member[:-1])
    with pytest.raises(InputError) as caught:
        index_arrays(path)
    assert caught.value.code == "unreadable_source"


def test_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("gadc.images.arrays.MAX_SMALL_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", np.zeros((50, 64, 64, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        index_arrays(tmp_path / "a.npz")
    assert caught.value.code == "too_large"


def test_part_of_a_source_is_those_images_in_that_order(tmp_path):
    index = open_index(write_pngs(tmp_path / "images", noise_images(5)))
    part = part_of(index, ["000003.png", "000001.png"], [None, None])
    assert [part.read(0), part.read(1)] == [index.read(3), index.read(1)]
    assert part.path(0) == index.path(3)


def test_part_of_a_source_notices_another_image(tmp_path):
    folder = write_pngs(tmp_path / "images", noise_images(2))
    index = open_index(folder)
    sha256 = [hashlib.sha256(index.read(row)).hexdigest() for row in range(2)]
    write_pngs(folder, noise_images(1, seed=5))
    part = part_of(open_index(folder), index.ids, sha256)
    assert hashlib.sha256(part.read(1)).hexdigest() == sha256[1]
    with pytest.raises(InputError) as caught:
        part.read(0)
    assert caught.value.code == "source_changed"


def test_part_of_a_source_notices_a_missing_image(tmp_path):
    folder = write_pngs(tmp_path / "images", noise_images(2))
    part = part_of(open_index(folder), ["000001.png"], [None])
    (folder / "000001.png").unlink()
    with pytest.raises(InputError) as caught:
        part.read(0)
    assert caught.value.code == "source_changed"
    with pytest.raises(InputError) as caught:
        part_of(open_index(folder), ["000001.png"], [None])
    assert caught.value.code == "source_mismatch"
