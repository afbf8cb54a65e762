"""Anybody's own features: safetensors, npz, npy and parquet files; never a pickle."""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.checks import (
    as_class_indices,
    as_float_matrix,
    as_probabilities,
    check_class_range,
    check_lengths,
)
from gadc.features.rows import FeatureRows
from gadc.features.tensors import map_tensors
from gadc.images.arrays import NPY_ERRORS, ZIP_ERRORS

PICKLE_SUFFIXES = frozenset(
    [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"]
)
PICKLE_MEMBER_SUFFIXES = (".pkl", "/byteorder")
"""Members that make a zip file one of torch.save's."""
PICKLE_REMEDY = (
    "loading a pickle runs the code in it; save the arrays with "
    "safetensors.numpy.save_file or numpy.savez instead"
)
MAX_SMALL_FILE_BYTES = 1 << 30
MAX_EXPANSION = 100
"""A file may declare `MAX_EXPANSION` times its size on disk, or `MAX_SMALL_FILE_BYTES` in any case;
real features don't compress by more than a few per cent, a zip bomb does by a thousand times."""
PARQUET_ROWS_AT_A_TIME = 16_384
NPY_START_BYTES = 12
MAX_NPY_HEADER_BYTES = 1 << 16
PICKLE_START = b"\x80"
OBJECT_TYPE = re.compile(rb"'[|<>=]?O'")

FEATURE_NAMES = ("features", "arr_0")
LABEL_NAMES = ("labels", "label")
ID_NAMES = ("ids", "id")
CLASS_NAME_COLUMN = "class_name"


@dataclass(frozen=True)
class FeatureFile:
    """What a file holds, checked.

    Attributes:
        features: Float32 [n, d]; a read-only memory map where the file allows it.
        labels: Int64 [n] into `class_names`, or None.
        class_names: Names of the classes; the label itself as text where the file has no names.
        probabilities: Float32 [n, c], rows summing to 1, or None.
        ids: One name per row, or None.
    """

    features: FeatureRows
    labels: NDArray[np.int64] | None
    class_names: list[str]
    probabilities: FeatureRows | None
    ids: list[str] | None


def read_feature_file(path: Path) -> FeatureFile:
    """Read a file of features that gadc didn't write.

    Names looked for: `features` (or `arr_0`, or the only two-dimensional array); optional
    `labels` or `label` (integers or strings), `probabilities`, `ids` or `id`. In parquet,
    `features` is a list column, or the columns are `f0`, `f1` and so on. A safetensors or
    parquet file may name its classes in the metadata entry `class_names`, a JSON list.

    Args:
        path: `.safetensors`, `.npz`, `.npy` or `.parquet`.

    Returns:
        Checked arrays; any real number type is cast to float32 once.

    Raises:
        InputError: `pickle_refused`, `features_not_finite`, `length_mismatch`,
            `label_out_of_range`, `probabilities_not_normalised`, `too_large`,
            `unreadable_features` or `unknown_format`.
    """
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        raise InputError("pickle_refused", f"{path} is refused: {PICKLE_REMEDY}")
    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise InputError("unknown_format", f"{path}: suffix must be one of {', '.join(readers)}")
    if not path.is_file():
        raise InputError("unreadable_features", f"{path} is not there, or not a file")
    columns, class_names = readers[suffix](path)
    return _checked(path, columns, class_names)


def read_labels(path: Path) -> NDArray[Any]:
    """Read labels that stand in a file of their own.

    Args:
        path: `.npy` (integers or strings), or any other suffix: text, one class name a line.

    Returns:
        Integers or strings [n].

    Raises:
        InputError: The file can't be read, or holds a pickle.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError("pickle_refused", f"{path} is refused: {PICKLE_REMEDY}")
    if path.suffix.lower() == ".npy":
        return np.array(_read_npy(path)[0]["features"])
    try:
        return np.array(path.read_text("utf-8").splitlines(), dtype=np.str_)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("unreadable_labels", f"can't read labels from {path}: {error}") from error


Columns = dict[str, NDArray[Any]]


def _read_safetensors(path: Path) -> tuple[Columns, list[str] | None]:
    tensors, metadata = map_tensors(path)
    columns = {name: tensor.numbers() for name, tensor in tensors.items()}
    return columns, class_names_of(path, metadata.get("class_names"))


def class_names_of(path: Path, text: str | None) -> list[str] | None:
    """Return the class names in a file's metadata entry, a JSON list; None without one."""
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("bad_class_names", f"{path}: class_names must be a JSON list of strings")
    return names


def _check_declared(path: Path, n_bytes: int) -> None:
    limit = max(MAX_SMALL_FILE_BYTES, MAX_EXPANSION * path.stat().st_size)
    if n_bytes > limit:
        raise InputError(
            "too_large",
            f"{path} declares {n_bytes} bytes in a file of {path.stat().st_size}; "
            f"at most {limit} are read; save it uncompressed if it is real",
        )


def _read_npy(path: Path) -> tuple[Columns, list[str] | None]:
    try:
        with path.open("rb") as file:
            _refuse_objects(path, file.read)
        return {"features": np.load(path, mmap_mode="r", allow_pickle=False)}, None
    except InputError:
        raise
    except NPY_ERRORS as error:
        raise InputError("unreadable_features", f"{path}: {error}") from error


def _read_npz(path: Path) -> tuple[Columns, list[str] | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_declared(path, sum(member.file_size for member in members))
            for member in members:
                if member.filename.endswith(PICKLE_MEMBER_SUFFIXES):
                    raise InputError("pickle_refused", f"{path} is refused: {PICKLE_REMEDY}")
                with archive.open(member) as stream:
                    _refuse_objects(f"{path}:{member.filename}", stream.read)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}, None
    except InputError:
        raise
    except ZIP_ERRORS as error:
        raise InputError("unreadable_features", f"{path}: {error}") from error


def _refuse_objects(name: Path | str, read: Callable[[int], bytes]) -> None:
    """Raise unless a .npy stream starts like an array of plain numbers or strings.

    Only the header is read, and as text: NumPy's own reader would refuse objects as well, but by
    an error that is no different from that of a broken file.
    """
    start = read(NPY_START_BYTES)
    if start[:1] == PICKLE_START:
        raise InputError("pickle_refused", f"{name} is a pickle: {PICKLE_REMEDY}")
    if start[:6] != b"\x93NUMPY" or len(start) < NPY_START_BYTES:
        raise InputError("unreadable_features", f"{name} is not a NumPy array")
    if start[6] == 1:  # format 1.0 has a two-byte length, so two bytes of the header were read
        header = start[10:] + read(int.from_bytes(start[8:10], "little") - 2)
    else:
        header = read(min(int.from_bytes(start[8:12], "little"), MAX_NPY_HEADER_BYTES))
    if OBJECT_TYPE.search(header):
        raise InputError("pickle_refused", f"{name} holds Python objects: {PICKLE_REMEDY}")


def _read_parquet(path: Path) -> tuple[Columns, list[str] | None]:
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return _parquet_columns(path, file)
    except InputError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError("unreadable_features", f"{path}: {error}") from error


def _parquet_columns(
    path: Path, file: pyarrow.parquet.ParquetFile
) -> tuple[Columns, list[str] | None]:
    names = file.schema_arrow.names
    wanted = [name for name in ("probabilities", *LABEL_NAMES, *ID_NAMES) if name in names]
    if CLASS_NAME_COLUMN in names and not set(LABEL_NAMES) & set(names):
        wanted.append(CLASS_NAME_COLUMN)
    numbered: list[str] = []
    if "features" in names:
        wanted.append("features")
    else:
        while f"f{len(numbered)}" in names:
            numbered.append(f"f{len(numbered)}")
        if not numbered:
            raise InputError(
                "no_features", f"{path} has neither a list column `features` nor columns f0, f1 ..."
            )
        wanted += numbered
    n_rows = file.metadata.num_rows
    # Every value takes at least four bytes in memory, whatever run-length encoding makes of it.
    _check_declared(path, 4 * n_rows * len(wanted))
    blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
    n_bytes = 0
    for batch in file.iter_batches(batch_size=PARQUET_ROWS_AT_A_TIME, columns=wanted):
        for name in wanted:
            block = _parquet_block(path, name, batch.column(name))
            blocks[name].append(block)
            n_bytes += block.nbytes
        _check_declared(path, n_bytes)
    if not n_rows:
        raise InputError("no_features", f"{path} has no rows")
    columns = {name: np.concatenate(parts) for name, parts in blocks.items()}
    if "features" not in columns:
        columns["features"] = np.stack([columns.pop(name) for name in numbered], axis=1)
    if CLASS_NAME_COLUMN in columns:
        columns["labels"] = columns.pop(CLASS_NAME_COLUMN)
    metadata = file.schema_arrow.metadata or {}
    text = metadata.get(b"class_names")
    return columns, class_names_of(path, text.decode("utf-8", "replace") if text else None)


def _parquet_block(path: Path, name: str, column: pyarrow.Array) -> NDArray[Any]:
    """Turn one column of a batch into an array; list columns become [n, d]."""
    if column.null_count:
        raise InputError("missing_values", f"{path}: column {name!r} has empty cells")
    kind = column.type
    if pyarrow.types.is_fixed_size_list(kind):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(
            len(column), kind.list_size
        )
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        lengths = np.diff(column.offsets.to_numpy())
        if lengths.size and (lengths != lengths[0]).any():
            raise InputError(
                "ragged_features", f"{path}: rows of {name!r} have different numbers of values"
            )
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values).reshape(len(column), -1)
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    return values.astype(np.str_) if values.dtype == object else values


def _checked(path: Path, columns: Columns, class_names: list[str] | None) -> FeatureFile:
    features = as_float_matrix(columns[name_of_features(path, columns)], f"features of {path}")
    n_rows = len(features)
    probabilities = None
    if "probabilities" in columns:
        check_lengths(path, n_rows, probabilities=columns["probabilities"])
        probabilities = as_probabilities(columns["probabilities"], f"probabilities of {path}")
    found = first_of(columns, LABEL_NAMES)
    labels = None
    if found is not None:
        check_lengths(path, n_rows, labels=found)
        if class_names is None and probabilities is not None:
            class_names = [str(column) for column in range(probabilities.shape[1])]
        labels, class_names = as_class_indices(found, class_names, f"labels of {path}")
    elif class_names is None:
        n_columns = 0 if probabilities is None else probabilities.shape[1]
        class_names = [str(column) for column in range(n_columns)]
    check_class_range(path, class_names, probabilities)
    ids = first_of(columns, ID_NAMES)
    if ids is not None:
        check_lengths(path, n_rows, ids=ids)
    return FeatureFile(
        features,
        labels,
        class_names,
        probabilities,
        None if ids is None else [str(name) for name in ids.tolist()],
    )


def first_of(columns: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    """Return the first column there is of these names."""
    return next((columns[name] for name in names if name in columns), None)


def name_of_features(path: Path, columns: Columns) -> str:
    """Return which column holds the features.

    Raises:
        InputError: `no_features`: none has a name for it, and not just one is a matrix.
    """
    for name in FEATURE_NAMES:
        if name in columns:
            return name
    matrices = [
        name for name, array in columns.items() if array.ndim == 2 and name != "probabilities"
    ]
    if len(matrices) != 1:
        raise InputError(
            "no_features",
            f"{path} has no array named `features`; it has {', '.join(sorted(columns)) or 'none'}",
        )
    return matrices[0]
