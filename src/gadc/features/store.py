"""Features on disk: a folder that is complete and verified, or anybody's own file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from gadc.errors import InputError, RunError
from gadc.features.checks import as_class_indices, check_lengths
from gadc.features.formats import FeatureFile, read_feature_file, read_labels
from gadc.features.rows import FeatureRows
from gadc.features.shards import read_feature_shards, shard_paths
from gadc.features.tensors import map_tensors
from gadc.images.source import Excluded, Quarantined
from gadc.storage import digest, escape_name, file_sha256, unescape_name

SCHEMA_VERSION = 1
FEATURES_NAME = "features.safetensors"
ROWS_NAME = "rows.safetensors"
ITEMS_NAME = "items.parquet"
QUARANTINE_NAME = "quarantine.parquet"
EXCLUDED_NAME = "excluded.parquet"
SUMMARY_NAME = "features.json"
ROWS_PER_GROUP = 65_536


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of the images of a data set, and what is known about each.

    Attributes:
        ids: One stable name per image.
        features: Float32 [n, d]; a read-only memory map where it comes from disk, or several.
        labels: Int64 [n] into `class_names`; None without labels.
        class_names: The classes.
        probabilities: Float32 [n, c], p(class | image) from the encoder's own head; None if it
            has none that knows these classes.
        sha256: Digest of each image's bytes as they were used; None for features from elsewhere.
        paths: What a person opens.
        excluded: Files that were no candidates.
        quarantined: Bad items, set aside with their reason.
        n_scanned: All items seen: images, excluded and quarantined.
        provenance: Where the features come from: encoder, weights, preprocessing, versions, source.
        run_counts: How this run got here: images `computed` and `reused`, files found `corrupt`;
            not stored, and empty for a set that was only loaded.
    """

    ids: list[str]
    features: FeatureRows
    labels: NDArray[np.int64] | None
    class_names: list[str]
    probabilities: FeatureRows | None
    sha256: list[str] | None
    paths: list[str]
    excluded: list[Excluded]
    quarantined: list[Quarantined]
    n_scanned: int
    provenance: dict[str, Any]
    run_counts: dict[str, int] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        """Number of images with features."""
        return len(self.ids)

    @property
    def n_features(self) -> int:
        """Length of a feature vector."""
        return int(self.features.shape[1])

    def class_rows(self, label: int) -> NDArray[np.int64]:
        """Return the rows of a class in ascending order; every row if there are no labels."""
        if self.labels is None:
            return np.arange(self.n_images, dtype=np.int64)
        return np.flatnonzero(self.labels == label)


def load_features(
    path: Path | str, *, labels: Path | None = None, verify: bool = True
) -> FeatureSet:
    """Open the folder that `extract` wrote, or anybody's own features.

    Args:
        path: A folder with `features.json`; a `.safetensors`, `.npz`, `.npy` or `.parquet` file,
            see `gadc.features.formats.read_feature_file` for what it must hold; or a folder of
            `.safetensors` files, see `gadc.features.shards.read_feature_shards`.
        labels: For files: labels that stand elsewhere, `.npy` or one class name a line.
        verify: Compare the folder's files with their digests, which reads all of them once. A
            file without digests is checked for NaN, infinity and lengths in any case.

    Raises:
        InputError: Nothing usable there.
        RunError: `corrupt`: a file of the folder is not what was written.
    """
    path = Path(path)
    if path.is_dir() and not (path / SUMMARY_NAME).exists() and (shards := shard_paths(path)):
        digests = {shard.name: file_sha256(shard) for shard in shards}
        return _own_features(path, read_feature_shards(shards), digest(digests), "shards", labels)
    if path.is_dir():
        if labels is not None:
            raise InputError(
                "labels_given_twice", f"{path} has its own labels; leave out labels={labels}"
            )
        return _load_folder(path, verify=verify)
    return _own_features(path, read_feature_file(path), file_sha256(path), "file", labels)


def _own_features(
    path: Path, found: FeatureFile, sha256: str, kind: str, labels_path: Path | None
) -> FeatureSet:
    n_rows = len(found.features)
    labels, class_names = found.labels, found.class_names
    if labels_path is not None:
        given = read_labels(labels_path)
        check_lengths(labels_path, n_rows, labels=given)
        names = None if found.probabilities is None else class_names
        labels, class_names = as_class_indices(given, names, f"labels of {labels_path}")
    ids = found.ids or [str(row) for row in range(n_rows)]
    if len(set(ids)) < n_rows:
        raise InputError("duplicate_ids", f"{path}: ids are not unique; give each row its own")
    return FeatureSet(
        ids=ids,
        features=found.features,
        labels=labels,
        class_names=class_names,
        probabilities=found.probabilities,
        sha256=None,
        paths=ids,
        excluded=[],
        quarantined=[],
        n_scanned=n_rows,
        provenance={"source": str(path), "kind": kind, "sha256": sha256},
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """Read and check `features.json`.

    Raises:
        InputError: The folder is not finished, or of another schema.
        RunError: The file is corrupt.
    """
    path = folder / SUMMARY_NAME
    if not path.is_file():
        raise InputError(
            "not_finished",
            f"{folder} has no {SUMMARY_NAME}: not a folder of features, or a run that has not "
            "finished; run the same command again to finish it",
        )
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        claimed = summary.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path) from error
    if digest(summary) != claimed:
        raise _corrupt(path)
    if summary["schema"] != SCHEMA_VERSION:
        raise InputError(
            "schema_version",
            f"{path} has schema {summary['schema']}, this gadc reads {SCHEMA_VERSION}; "
            "extract the features again",
        )
    return summary


def verify_files(folder: Path, summary: dict[str, Any]) -> list[Path]:
    """Return the files of a finished folder that are missing or not what was written."""
    bad = []
    for name, expected in summary["files"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != expected:
            bad.append(path)
    return bad


def _corrupt(path: Path) -> RunError:
    return RunError(
        "corrupt",
        f"{path} is missing or not what was written; extract the features again",
    )


def _load_folder(folder: Path, *, verify: bool) -> FeatureSet:
    summary = read_summary(folder)
    bad = verify_files(folder, summary) if verify else []
    if bad:
        raise _corrupt(bad[0])
    try:
        tensors, _ = map_tensors(folder / FEATURES_NAME)
        items = read_table(folder / ITEMS_NAME)
        quarantine = read_table(folder / QUARANTINE_NAME)
        excluded = read_table(folder / EXCLUDED_NAME)
    except (OSError, pyarrow.ArrowException, InputError) as error:
        raise _corrupt(folder) from error
    labels = tensors.get("labels")
    probabilities = tensors.get("probabilities")
    features = tensors["features"].values
    if len(features) != len(items["id"]):
        raise _corrupt(folder / ITEMS_NAME)
    return FeatureSet(
        ids=items["id"],
        features=features,
        labels=None if labels is None else np.array(labels.values),
        class_names=summary["class_names"],
        probabilities=None if probabilities is None else probabilities.values,
        sha256=items["sha256"],
        paths=items["path"],
        excluded=[Excluded(*row) for row in zip(excluded["path"], excluded["reason"], strict=True)],
        quarantined=[
            Quarantined(*row)
            for row in zip(
                quarantine["path"],
                quarantine["code"],
                quarantine["message"],
                quarantine["sha256"],
                strict=True,
            )
        ],
        n_scanned=summary["n_scanned"],
        provenance=summary["provenance"],
    )


def write_table(path: Path, columns: dict[str, list[Any]], types: dict[str, str]) -> None:
    """Write a parquet file whose pages carry checksums; text is escaped by `escape_name`.

    Args:
        path: The file.
        columns: Values by column.
        types: Arrow's type name by column, such as `string` or `int64`.
    """
    arrays = {}
    for name, values in columns.items():
        if types[name] == "string":
            values = [None if value is None else escape_name(value) for value in values]
        arrays[name] = pyarrow.array(values, type=pyarrow.type_for_alias(types[name]))
    pyarrow.parquet.write_table(
        pyarrow.table(arrays),
        path,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        write_page_checksum=True,
    )


def read_table(path: Path) -> dict[str, list[Any]]:
    """Read what `write_table` wrote; a flipped bit in a page is an error."""
    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    columns = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        if pyarrow.types.is_string(table.schema.field(name).type):
            values = [None if value is None else unescape_name(value) for value in values]
        columns[name] = values
    return columns
