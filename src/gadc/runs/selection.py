"""One selection run: from what a user names to a folder with the subset and all about it."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gadc
from gadc.cluster.connection import Engine, check_engine, joined
from gadc.condense import RECORDS_FOLDER, condense
from gadc.errors import InputError
from gadc.export import paths_text
from gadc.features.store import (
    EXCLUDED_NAME,
    QUARANTINE_NAME,
    FeatureSet,
    write_table,
)
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex, examples
from gadc.job.config import CondenseConfig
from gadc.runs.inputs import (
    ImageSettings,
    comparable_target,
    count_names,
    extract_features,
    is_features,
    join_features,
    load_any,
)
from gadc.runs.record import RECORD_NAME, SCHEMA_VERSION, ImageSource
from gadc.runtime import ProgressStyle, pick_device
from gadc.storage import (
    exclusive,
    file_sha256,
    prepare_output,
    write_atomically,
    write_json,
    write_text,
)
from gadc.subset import SUBSET_NAME, Subset

logger = logging.getLogger(__name__)

PATHS_NAME = "paths.txt"
FEATURES_FOLDER = "features"
TARGET_FOLDER = "target-features"
MAX_LIST_BYTES = 1 << 30


# From here on a selection takes longer than the start of a few processes.
MANY_IMAGES = 10_000


@dataclass(frozen=True)
class Request:
    """What a selection is asked for.

    Attributes:
        data: Images or features.
        out: The folder for the results.
        config: How many, and by which objective.
        images: How images are read and turned into features.
        features: The images' features, computed elsewhere.
        labels_file: Labels of a file of features.
        target: Images or features to match; default: each class itself.
        keep: A list of images to select in any case, or a subset.
        exclude: A list of images not to select, or a subset.
        workers: Processes; default: one per core where there is much to do. With Ray, the most
            tasks at the same time.
        engine: See `gadc.condense.condense`.
        address: See there.
        wait_seconds: How long to wait for another process that writes to `out`.
        null_paths: End paths in `paths.txt` with NUL.
    """

    data: Path
    out: Path
    config: CondenseConfig
    images: ImageSettings = field(default_factory=ImageSettings)
    features: Path | None = None
    labels_file: Path | None = None
    target: Path | None = None
    keep: Path | None = None
    exclude: Path | None = None
    workers: int | None = None
    engine: Engine = "local"
    address: str | None = None
    wait_seconds: float = 0.0
    null_paths: bool = False


def run_selection(request: Request, *, show: ProgressStyle = "silent") -> dict[str, Any]:
    """Select, and write `subset.parquet`, `paths.txt`, the tables of what was left out, `run.json`.

    Calling it again goes on where it stopped. `run.json` comes last: a folder without it is not
    finished.

    Returns:
        The contents of `run.json`.

    Raises:
        InputError: Something in the request, or in the files it names, can't be used.
        RunError: Another process writes to the folder, the disk is full, and the like.
    """
    check_engine(
        request.engine,
        address=request.address,
        workers=request.workers,
        device=request.images.device,
    )
    # Joined here, before anything is written; `condense` and `extract` then use the connection.
    with joined(request.engine, request.address, request.workers):
        return _run(request, show)


def _run(request: Request, show: ProgressStyle) -> dict[str, Any]:
    started, began = time.time(), time.monotonic()
    out = request.out
    inputs = [request.data, request.features, request.target]
    prepare_output(out, *(path for path in inputs if path is not None))
    # `condense` takes the lock of `out` itself; this one spans the whole run.
    (out / RECORDS_FOLDER).mkdir(exist_ok=True)
    with exclusive(out / RECORDS_FOLDER, wait_seconds=request.wait_seconds):
        features, source = features_of(request, show)
        features_seconds = time.monotonic() - began
        target = _target(request, features, show)
        (out / RECORD_NAME).unlink(missing_ok=True)
        subset = condense(
            features,
            request.config,
            target=target,
            keep=read_ids(request.keep, features),
            exclude=read_ids(request.exclude, features),
            out=out,
            workers=workers_of(request, features.n_images),
            engine=request.engine,
            device=request.images.device,
            show=show,
        )
        if source is not None and features.sha256 is None:
            subset = _with_sha256(subset, source.index())
            subset.save(out / SUBSET_NAME)
        record = _record(request, features, subset, source)
        record["paths_end_with"] = _write_paths(request, features, subset)
        _write_left_out(out, features)
        record["files"] = {
            name: file_sha256(out / name)
            for name in (SUBSET_NAME, PATHS_NAME, QUARANTINE_NAME, EXCLUDED_NAME)
        }
        record["times"] = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "features_seconds": round(features_seconds, 2),
            "total_seconds": round(time.monotonic() - began, 2),
        }
        write_json(out / RECORD_NAME, record)
    return record


def features_of(request: Request, show: ProgressStyle) -> tuple[FeatureSet, ImageSource | None]:
    """Return the features to select from, and where their images are."""
    data, images = request.data, request.images
    source = ImageSource(data, images.image_column, images.follow_outside)
    if is_features(data):
        if request.features is not None:
            raise InputError(
                "features_twice", f"{data} are features already; leave out {request.features}"
            )
        found = load_any(data, labels_file=request.labels_file)
        is_ours = data.is_dir() and found.provenance.get("kind") != "shards"
        given = found.provenance.get("source") if is_ours else None
        return found, None if given is None else ImageSource(Path(given))
    if request.features is not None:
        index = images.index(data)
        found = load_any(request.features, labels_file=request.labels_file)
        return join_features(index, found, source=request.features), source
    if request.labels_file is not None:
        raise InputError(
            "labels_not_used", f"{request.labels_file} is for files of features; {data} are images"
        )
    found = _extracted(data, request.out / FEATURES_FOLDER, request, show)
    return found, source


def _extracted(data: Path, folder: Path, request: Request, show: ProgressStyle) -> FeatureSet:
    return extract_features(
        data, folder, request.images, engine=request.engine, workers=request.workers, show=show
    )


def _target(request: Request, pool: FeatureSet, show: ProgressStyle) -> FeatureSet | None:
    target = request.target
    if target is None:
        return None
    pool_folder = request.data if is_features(request.data) else request.out / FEATURES_FOLDER
    if is_features(target):
        return comparable_target(load_any(target), target, pool, pool_folder)
    if is_features(request.data) or request.features is not None:
        logger.info("features of the target are computed by %s", request.images.encoder)
    folder = request.out / TARGET_FOLDER
    found = _extracted(target, folder, request, show)
    return comparable_target(found, folder, pool, pool_folder)


def read_allocation(path: Path) -> dict[str, int]:
    """Read how many images each class gives, from a JSON file `{"class": number}`.

    Raises:
        InputError: No such file, or something else in it.
    """
    text = _read_small(path)
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise InputError("bad_allocation", f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(share, int) and not isinstance(share, bool) for share in content.values()
    ):
        raise InputError("bad_allocation", f'{path} must hold {{"class": whole number, ...}}')
    return content


def read_ids(path: Path | None, features: FeatureSet) -> list[str]:
    """Read a list of images: a subset, or lines (or NUL-ended) that are ids or paths.

    Raises:
        InputError: No such file, or images that are not among the features'.
    """
    if path is None:
        return []
    if path.is_dir() or path.suffix == ".parquet":
        listed = Subset.load(path).paths
    else:
        content = _read_small(path)
        lines = content.split(b"\0") if b"\0" in content else content.splitlines()
        listed = [os.fsdecode(line) for line in lines if line]
    ids = set(features.ids)
    if all(name in ids for name in listed):
        return listed
    by_path = {
        os.path.abspath(name): place
        for name, place in zip(features.paths, features.ids, strict=True)
    }
    found = [name if name in ids else by_path.get(os.path.abspath(name)) for name in listed]
    missing = [name for name, place in zip(listed, found, strict=True) if place is None]
    if missing:
        raise InputError(
            "unknown_ids",
            f"{path} lists {len(missing)} images that are not in the data (or are bad): "
            f"{examples(missing)}; ids look like {features.ids[0]!r}",
        )
    return [name for name in found if name is not None]


def _read_small(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise InputError("too_large", f"{path} has more than {MAX_LIST_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InputError("unreadable_file", f"can't read {path}: {error.strerror}") from error


def _with_sha256(subset: Subset, index: ImageIndex) -> Subset:
    """Record the digests of the selected images, so that an export can notice a change."""
    places = {name: place for place, name in enumerate(index.ids)}
    digests: list[str | None] = []
    for path in subset.paths:
        try:
            digests.append(hashlib.sha256(index.read(places[path])).hexdigest())
        except ImageError as error:
            raise InputError("bad_image", f"{path} was selected but {error.message}") from error
    return dataclasses.replace(subset, sha256=digests)


def _write_paths(request: Request, features: FeatureSet, subset: Subset) -> str:
    """Write `paths.txt`; return `newline` or `nul`."""
    paths = [features.paths[row] for row in subset.index.tolist()]
    is_null = request.null_paths
    if not is_null and any("\n" in path or "\r" in path for path in paths):
        logger.warning("a name holds a line break: the paths in %s end with NUL", PATHS_NAME)
        is_null = True
    write_text(request.out / PATHS_NAME, paths_text(paths, null=is_null))
    return "nul" if is_null else "newline"


def _write_left_out(out: Path, features: FeatureSet) -> None:
    quarantine: dict[str, list[Any]] = {
        name: [getattr(item, name) for item in features.quarantined]
        for name in ("path", "sha256", "code", "message")
    }
    excluded: dict[str, list[Any]] = {
        name: [getattr(item, name) for item in features.excluded] for name in ("path", "reason")
    }
    for name, columns in ((QUARANTINE_NAME, quarantine), (EXCLUDED_NAME, excluded)):
        types = dict.fromkeys(columns, "string")
        write_atomically(out / name, functools.partial(write_table, columns=columns, types=types))


def _record(
    request: Request, features: FeatureSet, subset: Subset, source: ImageSource | None
) -> dict[str, Any]:
    """Return what `run.json` says, but for digests and times."""
    provenance = subset.provenance
    return {
        "schema": SCHEMA_VERSION,
        "data": os.path.abspath(request.data),
        "out": str(request.out),
        "images": None if source is None else source.as_json(),
        "inputs": _described_inputs(request),
        **{name: value for name, value in provenance.items() if name not in ("keep", "exclude")},
        "n_kept": len(provenance["keep"]),
        "n_barred": len(provenance["exclude"]),
        "n_images": features.n_images,
        "n_selected": subset.n_images,
        "reconciliation": subset.reconciliation,
        "quarantined_by_code": count_names([item.code for item in features.quarantined]),
        "excluded_by_reason": count_names([item.reason for item in features.excluded]),
        "class_seconds": {
            name: round(seconds, 3) for name, seconds in subset.class_seconds.items()
        },
        "features_run": features.run_counts,
        "select_run": subset.run_counts,
        "workers": request.workers,
        "engine": request.engine,
        "versions": {
            "gadc": gadc.__version__,
            "numpy": np.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def _described_inputs(request: Request) -> dict[str, Any]:
    """Return what is needed to find the features again that were not computed here."""
    features, labels_file = request.features, request.labels_file
    return {
        "features": None if features is None else os.path.abspath(features),
        "labels_file": None if labels_file is None else os.path.abspath(labels_file),
        "labels": request.images.labels,
        "label_column": request.images.label_column,
    }


def workers_of(request: Request, n_images: int) -> int | None:
    """Return what is asked for, else one process per core where starting them pays.

    A GPU is not shared. None leaves it to Ray, which knows what its machines have, or here to forks
    of this process.
    """
    if request.workers is not None or request.engine == "ray":
        return request.workers
    if pick_device(request.images.device).type == "cuda":
        return 1
    if n_images < MANY_IMAGES:
        return None
    return os.cpu_count() or 1
