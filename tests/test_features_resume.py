import errno
import os
import shutil
import signal

import numpy as np
import pytest
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
from gadc.features.extract import extract
from gadc.images.index import open_index


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def small_parts(monkeypatch):
    """Make parts of four rows, so that eighteen images need several."""
    monkeypatch.setattr(extract_module, "PART_ROWS", 4)


class _InterruptedEncoder(ColourEncoder):
    def encode(self, batch):
        if self.n_encoded:
            raise KeyboardInterrupt
        return super().encode(batch)


def test_extract_keeps_computed_rows_on_interrupt(images, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract(open_index(images), as_on_gpu(_InterruptedEncoder()), out, batch_size=5)
    found = extract(open_index(images), colour_on_gpu(), out)
    assert found.run_counts == {"computed": 13, "reused": 5, "corrupt": 0}


def test_extract_corrupt_part_is_set_aside_and_computed_again(images, tmp_path, small_parts):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract(open_index(images), as_on_gpu(_InterruptedEncoder()), out, batch_size=5)
    (part,) = (out / "parts").glob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[-3] ^= 4
    part.write_bytes(content)
    found = extract(open_index(images), colour_on_gpu(), out)
    assert found.run_counts == {"computed": 18, "reused": 0, "corrupt": 1}
    assert part.with_name(part.name + ".corrupt").exists()
    fresh = extract(open_index(images), colour_on_gpu(), tmp_path / "fresh")
    np.testing.assert_array_equal(found.features, fresh.features)


@pytest.mark.parametrize("name", ["features.safetensors", "items.parquet", "features.json"])
def test_extract_corrupt_finished_file_is_computed_again(images, tmp_path, name):
    out = tmp_path / "out"
    extract(open_index(images), ColourEncoder(), out)
    before = folder_bytes(out)
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    found = extract(open_index(images), ColourEncoder(), out)
    assert found.run_counts["corrupt"] == 1
    (out / (name + ".corrupt")).unlink()
    assert folder_bytes(out) == before


def test_extract_corrupt_staging_folder_is_put_together_again(images, tmp_path):
    out = tmp_path / "out"
    extract(open_index(images), ColourEncoder(), out)
    before = folder_bytes(out)
    (out / "parts" / "finished").mkdir(parents=True)
    (out / "parts" / "finished" / "features.json").write_text("{")
    extract(open_index(images), ColourEncoder(), out)
    assert folder_bytes(out) == before


DISK_CALLS = ("replace", "fsync", "unlink", "mkdir", "rmdir")


def _watch_disk_calls(set_attribute, at_call):
    """Call `at_call(number)` before each call that changes a disk; return how many there were."""
    n_calls = 0

    def watched(function):
        def wrapper(*args, **kwargs):
            nonlocal n_calls
            n_calls += 1
            at_call(n_calls)
            return function(*args, **kwargs)

        return wrapper

    for name in DISK_CALLS:
        set_attribute(os, name, watched(getattr(os, name)))
    return lambda: n_calls


def _in_child(work):
    """Run `work` in a forked process; return its wait status and the text it returned."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize("make_encoder", [colour_on_gpu, tiny_pixels])
@pytest.mark.parametrize("is_update", [False, True])
def test_extract_killed_anywhere_ends_with_the_same_bytes(
    images, tmp_path, small_parts, make_encoder, is_update
):
    def prepare(out):
        shutil.rmtree(out, ignore_errors=True)
        if is_update:
            shutil.copytree(old, out)

    def start(out):
        extract(open_index(images), make_encoder(), out, batch_size=4)

    old, out = tmp_path / "old", tmp_path / "out"
    if is_update:
        start(old)
        Image.new("RGB", (12, 12), (1, 2, 3)).save(images / "red" / "003.png")
    start(tmp_path / "undisturbed")
    expected = folder_bytes(tmp_path / "undisturbed")

    def counted():
        n_calls = _watch_disk_calls(setattr, lambda number: None)
        start(out)
        return n_calls()

    prepare(out)
    n_calls = int(_in_child(counted)[1])
    assert n_calls > 10
    for kill_at in range(1, n_calls + 1, 2):
        prepare(out)

        def killed(kill_at=kill_at):
            def kill(number):
                if number == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            _watch_disk_calls(setattr, kill)
            start(out)

        status, _ = _in_child(killed)
        assert os.WIFSIGNALED(status)
        start(out)
        assert folder_bytes(out) == expected, f"killed at call {kill_at} of {n_calls}"


def test_extract_full_disk_at_any_call_is_named_and_repaired(
    images, tmp_path, small_parts, monkeypatch
):
    def start(out):
        extract(open_index(images), tiny_pixels(), out, batch_size=4)

    with monkeypatch.context() as patch:
        n_calls = _watch_disk_calls(patch.setattr, lambda number: None)
        start(tmp_path / "undisturbed")
    expected = folder_bytes(tmp_path / "undisturbed")
    codes = []
    for fails_at in range(1, n_calls() + 1, 2):

        def fail(number, fails_at=fails_at):
            if number == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")

        out = tmp_path / f"failed{fails_at}"
        with monkeypatch.context() as patch:
            _watch_disk_calls(patch.setattr, fail)
            try:
                start(out)
            except (RunError, InputError) as error:
                codes.append(error.code)
        start(out)
        assert folder_bytes(out) == expected, f"failed at call {fails_at} of {n_calls()}"
    assert len(codes) > 10
    assert set(codes) <= {"disk_full", "output_not_writable"}


def test_extract_second_writer_is_refused(images, tmp_path):
    out = tmp_path / "out"

    class Nested(ColourEncoder):
        def encode(self, batch):
            with pytest.raises(RunError) as caught:
                extract(open_index(images), ColourEncoder(), out)
            assert caught.value.code == "locked"
            return super().encode(batch)

    extract(open_index(images), Nested(), out)
