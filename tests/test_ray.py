"""Ray: the same bytes as on one machine, whoever is killed; and clear errors at every door."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import kill_child
from cli_runner import Gadc, gadc_fixture, spawn  # noqa: F401
from feature_sets import feature_set, quick, with_features
from features_helpers import folder_bytes, write_images
from gadc.cluster import connection, tasks
from gadc.condense import RECORDS_FOLDER, CondenseConfig, condense
from gadc.errors import InputError, MissingExtraError, RunError
from gadc.features.encoders import load_encoder
from gadc.features.encoders.resnet_cifar import CifarResNet56
from gadc.features.extract import extract
from gadc.images.faults import ImageError
from gadc.images.index import open_index
from gadc.images.source import ImageIndex
from gadc.runs.inputs import ImageSettings
from gadc.runs.plan import plan_selection
from gadc.runs.selection import Request
from gadc.subset import SUBSET_NAME
from waiting import is_running, wait_until

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Ray on this machine, joined for all tests, and its address; starting it takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        # Workers must find what this file defines.
        patched.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        context = ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the local engine selects."""
    out = tmp_path_factory.mktemp("local")
    condense(*kill_child_inputs(), out=out)
    return (out / SUBSET_NAME).read_bytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of an image far from it, and two bad ones."""
    root = write_images(tmp_path_factory.mktemp("data") / "images", n_per_class=30)
    (root / "red" / "copy.png").write_bytes((root / "blue" / "000.png").read_bytes())
    (root / "green" / "bad.png").write_bytes(b"no image")
    (root / "blue" / "bad.png").write_bytes(b"neither")
    return root


@pytest.fixture(scope="module")
def extracted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the local engine makes of the images."""
    out = tmp_path_factory.mktemp("local-features")
    extract(open_index(images), load_encoder("pixels"), out)
    return folder_bytes(out)


def kill_child_inputs():
    return feature_set(*kill_child.CLASS_SIZES), CondenseConfig(**kill_child.CONFIG)


def descendants(process: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def workers_at(task: str, process: int) -> list[int]:
    """Return the workers below a process that are doing a task; Ray names them so."""
    found = []
    for worker in descendants(process):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{worker}/cmdline").read_text().startswith(f"ray::{task}"):
                found.append(worker)
    return found


@contextlib.contextmanager
def killing(task: str, *, n_times: int) -> Iterator[list[int]]:
    """Kill so many workers of this process while they do a task; yield who was killed."""
    killed: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        while len(killed) < n_times and not is_over.wait(0.002):
            for worker in set(workers_at(task, os.getpid())[: n_times - len(killed)]) - set(killed):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        is_over.set()
        killer.join()


def deaths(log: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in log.messages if "its worker died" in line]


def recorded(out: Path) -> list[Path]:
    return sorted((out / RECORDS_FOLDER).glob("[0-9]*.json"))


def test_selection_is_that_of_the_local_engine(cluster: str, selected: bytes, tmp_path: Path):
    subset = condense(*kill_child_inputs(), out=tmp_path, engine="ray")
    assert (tmp_path / SUBSET_NAME).read_bytes() == selected
    assert subset.run_counts == {"computed": 6, "reused": 0, "corrupt": 0}


def test_killed_worker_changes_no_byte(
    cluster: str, selected: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with killing("class 'class 3'", n_times=1) as killed:
        subset = condense(*kill_child_inputs(), out=tmp_path, engine="ray", workers=2)
    assert len(killed) == len(deaths(caplog)) == 1
    assert (tmp_path / SUBSET_NAME).read_bytes() == selected
    assert subset.run_counts["computed"] == 6


def test_class_that_kills_its_workers_is_named_and_the_rest_done(
    cluster: str, selected: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with (
        killing("class 'class 1'", n_times=3) as killed,
        pytest.raises(RunError, match="3 times: class 'class 1'; all else is done") as raised,
    ):
        condense(*kill_child_inputs(), out=tmp_path, engine="ray", workers=2)
    assert raised.value.code == "worker_died"
    assert len(killed) == len(deaths(caplog)) == 3
    assert not (tmp_path / SUBSET_NAME).exists()
    assert [path.name[:5] for path in recorded(tmp_path)] == [f"{n:05d}" for n in (0, 2, 3, 4, 5)]
    subset = condense(*kill_child_inputs(), out=tmp_path)  # either engine goes on
    assert subset.run_counts == {"computed": 1, "reused": 5, "corrupt": 0}
    assert (tmp_path / SUBSET_NAME).read_bytes() == selected


def test_killed_driver_takes_its_workers_along_and_the_next_run_goes_on(
    cluster: str, selected: bytes, tmp_path: Path
):
    environment = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"}
    child = subprocess.Popen(
        [sys.executable, kill_child.__file__, str(tmp_path), "2", "ray"], env=environment
    )
    try:
        wait_until(lambda: recorded(tmp_path))
        workers = workers_at("class", child.pid)
    finally:
        child.kill()
        child.wait()
    n_recorded = len(recorded(tmp_path))
    assert n_recorded < 6
    assert workers
    wait_until(lambda: not any(is_running(worker) for worker in workers))

    subset = condense(*kill_child_inputs(), out=tmp_path, engine="ray")
    assert (tmp_path / SUBSET_NAME).read_bytes() == selected
    assert subset.run_counts == {"computed": 6 - n_recorded, "reused": n_recorded, "corrupt": 0}


def test_error_of_a_class_names_it(cluster: str):
    features = feature_set(12)
    values = features.features.copy()
    values[5] = 1e30
    with pytest.raises(InputError, match="class 'class 0': squared distances overflow"):
        condense(with_features(features, values), quick(), engine="ray")


@pytest.mark.parametrize("name", ["pixels", "cifar10-resnet56"])
def test_features_are_those_of_the_local_engine(
    cluster: str, images: Path, tmp_path: Path, name: str
):
    weights = None
    if name != "pixels":
        torch.manual_seed(0)
        weights = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(CifarResNet56().state_dict(), weights)
    encoder = load_encoder(name, weights=weights)
    local = extract(open_index(images), encoder, tmp_path / "local")
    found = extract(open_index(images), encoder, tmp_path / "ray", engine="ray", weights=weights)
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "local")
    assert found.run_counts == local.run_counts == {"computed": 90, "reused": 1, "corrupt": 0}
    again = extract(open_index(images), encoder, tmp_path / "ray", engine="ray", weights=weights)
    assert again.run_counts == {"computed": 0, "reused": 91, "corrupt": 0}
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "local")


@dataclasses.dataclass(frozen=True)
class SlowElsewhere:
    """A reader that takes its time in other processes, so that there is time to kill them."""

    reader: object
    process: int

    def read(self, position: int) -> bytes:
        if os.getpid() != self.process:
            time.sleep(0.1)
        return self.reader.read(position)

    def path(self, position: int) -> str | None:
        return self.reader.path(position)


def slow_index(images: Path) -> ImageIndex:
    index = open_index(images)
    return dataclasses.replace(index, reader=SlowElsewhere(index.reader, os.getpid()))


def test_worker_killed_among_images_changes_no_byte(
    cluster: str,
    images: Path,
    extracted: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    with killing("images 'blue/016.png'", n_times=1) as killed:
        extract(slow_index(images), load_encoder("pixels"), tmp_path, engine="ray", workers=2)
    assert len(killed) == len(deaths(caplog)) == 1
    assert folder_bytes(tmp_path) == extracted


def test_images_that_kill_their_workers_are_named_and_the_rest_kept(
    cluster: str, images: Path, extracted: dict[str, bytes], tmp_path: Path
):
    with (
        killing("images 'blue/016.png'", n_times=3) as killed,
        pytest.raises(RunError, match="3 times: images 'blue/016.png' to 'green/000.png'; all"),
    ):
        extract(slow_index(images), load_encoder("pixels"), tmp_path, engine="ray", workers=2)
    assert len(killed) == 3
    assert not (tmp_path / "features.json").exists()
    found = extract(open_index(images), load_encoder("pixels"), tmp_path)
    assert found.run_counts["computed"] == 15  # one of sixteen is bad
    assert folder_bytes(tmp_path) == extracted


@dataclasses.dataclass(frozen=True)
class OnlyHere:
    """A reader of files that one machine lacks, as its processes see it."""

    reader: object
    process: int

    def read(self, position: int) -> bytes:
        if os.getpid() != self.process and position == 50:
            raise ImageError("changed", "gone since the scan")
        return self.reader.read(position)

    def path(self, position: int) -> str | None:
        return self.reader.path(position)


def test_image_that_only_one_machine_lacks_is_no_bad_image(
    cluster: str, images: Path, tmp_path: Path
):
    index = open_index(images)
    partly = dataclasses.replace(index, reader=OnlyHere(index.reader, os.getpid()))
    with pytest.raises(RunError, match="can be read here but not on machine") as raised:
        extract(partly, load_encoder("pixels"), tmp_path, engine="ray")
    assert raised.value.code == "not_shared"
    assert list((tmp_path / "parts").glob("*.safetensors"))


def test_too_many_bad_images_stop_the_run(cluster: str, tmp_path: Path):
    root = write_images(tmp_path / "images")
    for number in range(30):
        (root / "red" / f"bad{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError) as raised:
        extract(open_index(root), load_encoder("pixels"), tmp_path / "out", engine="ray")
    assert raised.value.code == "too_many_bad"


def test_images_in_parquet_travel_without_open_files(cluster: str, images: Path, tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    paths = sorted(images.glob("*/0*.png"))
    table = pandas.DataFrame(
        {"image": [path.read_bytes() for path in paths], "label": [p.parent.name for p in paths]}
    )
    table.to_parquet(tmp_path / "images.parquet", row_group_size=20)
    index = open_index(tmp_path / "images.parquet")
    index.read(0)
    encoder = load_encoder("pixels")
    extract(index, encoder, tmp_path / "local")
    extract(index, encoder, tmp_path / "ray", engine="ray")
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "local")


def test_machine_with_other_versions_is_refused(cluster: str, monkeypatch: pytest.MonkeyPatch):
    here = {**tasks.versions(), "torch": "1.0"}
    monkeypatch.setattr(tasks, "versions", lambda: here)
    with pytest.raises(InputError, match=r"has torch 2.*, the one of this command torch 1\.0"):
        condense(feature_set(12), quick(), engine="ray")


def test_machine_with_another_encoder_is_refused(cluster: str, images: Path, tmp_path: Path):
    class Renamed(type(load_encoder("pixels"))):
        def fingerprint(self):
            return {**super().fingerprint(), "weights_sha256": "another"}

    with pytest.raises(InputError, match="has another encoder than this one") as raised:
        extract(open_index(images), Renamed(), tmp_path, engine="ray")
    assert raised.value.code == "machines_differ"


def test_tasks_that_need_a_gpu_are_refused_where_there_is_none(cluster: str):
    with pytest.raises(InputError, match="has a GPU") as raised:
        tasks.Cluster(None).n_at_once("cuda")
    assert raised.value.code == "no_resources"


def test_address_is_refused_where_ray_is_joined_already(cluster: str):
    with pytest.raises(InputError, match="connected to Ray already") as raised:
        condense(feature_set(12), quick(), engine="ray", address=cluster)
    assert raised.value.code == "option_unused"


def test_command_line_joins_a_cluster_and_leaves_it_running(
    cluster: str, gadc: Gadc, images: Path, tmp_path: Path
):
    request = (images, "--per-class", 3, "--encoder", "pixels", "--patience", 0, "--json")
    running = spawn(
        "select", *request, "--out", tmp_path / "ray", "--engine", "ray", "--address", cluster
    )
    stdout, stderr = running.communicate()
    assert running.returncode == 0, stderr
    assert json.loads(stdout)["engine"] == "ray"
    assert gadc("select", *request, "--out", tmp_path / "local").code == 0
    for name in ("subset.parquet", "paths.txt", "quarantine.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert folder_bytes(tmp_path / "ray/features") == folder_bytes(tmp_path / "local/features")
    assert ray.cluster_resources()["CPU"] == 2


def test_plan_with_ray_is_for_this_machine(tmp_path: Path):
    np.savez(tmp_path / "data.npz", features=feature_set(12).features)
    request = Request(tmp_path / "data.npz", tmp_path, quick(), engine="ray", workers=500)
    found = plan_selection(request, seconds=0.01)
    assert found["workers"] == 1
    assert "for this machine alone" in found["remarks"][0]


BAD_ADDRESSES = ("127.0.0.1:1", "nowhere", "a.b:c", "no.such.host.invalid:6379", "ray://x:1")


@pytest.fixture
def unjoined() -> None:
    """A process that has not joined Ray."""
    ray.shutdown()


@pytest.mark.parametrize("address", BAD_ADDRESSES)
@pytest.mark.parametrize("command", [("select", "--per-class", 3), ("features",)])
def test_no_such_address_is_refused_at_once(
    unjoined: None,
    gadc: Gadc,
    images: Path,
    tmp_path: Path,
    address: str,
    command: tuple[object, ...],
):
    started = time.monotonic()
    ended = gadc(
        *command,
        images,
        "--out",
        tmp_path / "out",
        "--encoder",
        "pixels",
        "--engine",
        "ray",
        "--address",
        address,
    )
    assert (ended.code, ended.error_code) == (2, "no_cluster")
    assert address in ended.stderr
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - started < 60


def test_what_answers_but_is_not_ray_is_refused(
    unjoined: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(connection, "JOIN_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError) as raised:
            condense(feature_set(12), quick(), out=tmp_path / "out", engine="ray", address=address)
    assert raised.value.code == "no_cluster"
    assert "no Ray answers within 3 s" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_address_of_the_environment_is_used(unjoined: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1 .*refused"):
        condense(feature_set(12), quick(), engine="ray")


def test_missing_ray_names_the_extra(
    unjoined: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gadc\[ray\]'"):
        condense(feature_set(12), quick(), out=tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--address", "127.0.0.1:6379"), "option_unused"),
        (("--engine", "ray", "--device", "cuda:1"), "option_conflict"),
    ],
)
@pytest.mark.parametrize("command", [("select", "--per-class", 3), ("features",)])
def test_options_that_contradict_each_other_are_refused(
    gadc: Gadc,
    images: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    options: tuple[str, ...],
    code: str,
):
    ended = gadc(*command, images, "--out", tmp_path / "out", "--encoder", "pixels", *options)
    assert (ended.code, ended.error_code) == (2, code)
    assert not (tmp_path / "out").exists()


def test_workers_of_features_need_ray(gadc: Gadc, images: Path, tmp_path: Path):
    ended = gadc("features", images, "--out", tmp_path / "out", "--workers", 2)
    assert (ended.code, ended.error_code) == (2, "option_unused")


def test_unknown_engine_is_refused():
    with pytest.raises(InputError, match="use 'local' or 'ray'"):
        condense(feature_set(12), quick(), engine="dask")


@pytest.mark.parametrize("n_workers", [0, -1])
def test_number_of_tasks_must_be_positive(images: Path, tmp_path: Path, n_workers: int):
    with pytest.raises(InputError, match="workers"):
        extract(
            open_index(images),
            ImageSettings(encoder="pixels").load_encoder(),
            tmp_path,
            engine="ray",
            workers=n_workers,
        )
