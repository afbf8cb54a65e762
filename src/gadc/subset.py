"""The selected images, and the proof of where they come from: `subset.parquet`."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from gadc.errors import InputError, MissingExtraError, RunError
from gadc.storage import canonical_json, escape_name, unescape_name, write_atomically

if TYPE_CHECKING:
    import datasets

    from gadc.images.source import ImageIndex

SCHEMA_VERSION = 1
SUBSET_NAME = "subset.parquet"
METADATA_KEY = b"gadc"
DIGEST_KEY = b"gadc_sha256"
"""Of the metadata; page checksums cover the columns alone."""
PARQUET_MAGIC = b"PAR1"
ROWS_PER_GROUP = 65_536

SCHEMA = pyarrow.schema(
    [
        ("index", pyarrow.int64()),
        ("path", pyarrow.string()),
        ("sha256", pyarrow.string()),
        ("label", pyarrow.int32()),
        ("class_name", pyarrow.string()),
        ("rank", pyarrow.int32()),
        ("gain", pyarrow.float64()),
        ("weight", pyarrow.float64()),
        ("source", pyarrow.string()),
    ]
)
READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    pyarrow.ArrowException,
)
"""What pyarrow raises on a file with flipped bits; lengths among them ask for any memory."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Selected images, class after class, in the order of selection within each.

    Attributes:
        index: Row in the features they were selected from, int64 [k].
        paths: Their ids; `path` in the file.
        sha256: Digest of each image's bytes, None where it is not known.
        labels: Class number, int32 [k]; 0 without labels. `label` in the file.
        class_name: Class of each image.
        rank: Place in the order of selection within the class, from 0, int32 [k].
        gain: Decrease of the class's objective by the image, float64 [k]; those of a class sum to
            minus its objective.
        weight: How many images of the pool it stands for, float64 [k]; a class's sum to its size.
        source: Where each image was found.
        provenance: What was asked for, of which data, by which version; a record per class.
        run_counts: How this run got here: classes `computed` and `reused`, records found
            `corrupt`; not stored, and empty for a subset that was only loaded.
        class_seconds: Time of the search by class, whenever that was; not stored either.
    """

    index: NDArray[np.int64]
    paths: list[str]
    sha256: list[str | None]
    labels: NDArray[np.int32]
    class_name: list[str]
    rank: NDArray[np.int32]
    gain: NDArray[np.float64]
    weight: NDArray[np.float64]
    source: list[str]
    provenance: dict[str, Any]
    run_counts: dict[str, int] = field(default_factory=dict)
    class_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        """Number of selected images."""
        return len(self.paths)

    @property
    def reconciliation(self) -> str:
        """Where every scanned file went, in one line."""
        counts = self.provenance
        return (
            f"{counts['n_scanned']} scanned = {counts['n_pool']} in the pool + "
            f"{counts['n_quarantined']} quarantined + {counts['n_excluded']} excluded"
        )

    @property
    def class_names(self) -> list[str]:
        """Name of every label from 0, also of classes without a selected image."""
        known = {
            record["label"]: record["class_name"] for record in self.provenance.get("classes", [])
        }
        known |= dict(zip(self.labels.tolist(), self.class_name, strict=True))
        n_classes = max(known, default=-1) + 1
        return [known.get(label, f"(no images: {label})") for label in range(n_classes)]

    def first(self, n_selected: int) -> Self:
        """Return the first images of each class in the order of selection: a smaller subset.

        Of a nested selection, those of one of its sizes are a good subset of that size; others
        are as good as a greedy order makes them. The records of the classes in the provenance
        say of the smaller subset what is known of it, which always is its objective.

        Args:
            n_selected: How many of each class; of a class that has fewer, all.

        Raises:
            InputError: `first_range`: below 1, or more than any class has.
        """
        largest = int(self.rank.max()) + 1 if self.n_images else 0
        if not 1 <= n_selected <= largest:
            raise InputError(
                "first_range",
                f"first={n_selected} must lie between 1 and {largest}, the most images selected "
                "of a class",
            )
        rows = np.flatnonzero(self.rank < n_selected)
        before = np.bincount(self.labels)
        after = np.bincount(self.labels[rows], minlength=len(before))
        weights = self.weight * (before / np.maximum(after, 1))[self.labels]

        def chosen(column: list[Any]) -> list[Any]:
            return [column[row] for row in rows.tolist()]

        return dataclasses.replace(
            self,
            index=self.index[rows],
            paths=chosen(self.paths),
            sha256=chosen(self.sha256),
            labels=self.labels[rows],
            class_name=chosen(self.class_name),
            rank=self.rank[rows],
            gain=self.gain[rows],
            weight=weights[rows],
            source=chosen(self.source),
            provenance={
                **self.provenance,
                "first": n_selected,
                "classes": [
                    self._first_of_class(record, n_selected)
                    for record in self.provenance.get("classes", [])
                ],
            },
        )

    def _first_of_class(self, record: dict[str, Any], n_selected: int) -> dict[str, Any]:
        """Return what is known of the first images of a class."""
        if record["n_selected"] <= n_selected:
            return record
        is_first = (self.labels == record["label"]) & (self.rank < n_selected)
        known = {entry["n_selected"]: entry for entry in record.get("nested", [])}
        unknown = {
            "n_selected": n_selected,
            "objective": -float(self.gain[is_first].sum()),
            "terms": {},
            "transport_gap": None,
            "is_swap_optimal": False,
        }
        return {
            **record,
            **known.get(n_selected, unknown),
            "nested": [known[size] for size in sorted(known) if size < n_selected],
        }

    def save(self, path: Path | str) -> Path:
        """Write the subset; equal subsets give equal bytes.

        Args:
            path: The file, or an existing folder that gets a `subset.parquet`. Text in the file is
                escaped by `gadc.storage.escape_name`, so that undecodable names survive.

        Returns:
            The file.

        Raises:
            RunError: The disk is full or refuses.
            InputError: The counts of the provenance don't add up.
        """
        path = Path(path)
        if path.is_dir():
            path = path / SUBSET_NAME
        if not _is_reconciled(self.provenance):
            raise InputError("not_reconciled", f"the counts don't add up: {self.reconciliation}")
        columns = self.columns()
        described = {
            **self.provenance,
            "schema_version": SCHEMA_VERSION,
            "n_selected": self.n_images,
            "columns_sha256": _columns_sha256(columns),
        }
        text = canonical_json(described).encode()
        metadata = {METADATA_KEY: text, DIGEST_KEY: hashlib.sha256(text).hexdigest().encode()}
        table = pyarrow.table(columns, schema=SCHEMA.with_metadata(metadata))
        write_atomically(
            path,
            lambda temporary: pyarrow.parquet.write_table(
                table,
                temporary,
                compression="zstd",
                row_group_size=ROWS_PER_GROUP,
                write_page_checksum=True,
            ),
        )
        return path

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `subset.parquet`, text escaped by `gadc.storage.escape_name`."""
        return {
            "index": self.index.tolist(),
            "path": [escape_name(path) for path in self.paths],
            "sha256": list(self.sha256),
            "label": self.labels.tolist(),
            "class_name": [escape_name(name) for name in self.class_name],
            "rank": self.rank.tolist(),
            "gain": self.gain.tolist(),
            "weight": self.weight.tolist(),
            "source": [escape_name(source) for source in self.source],
        }

    def to_hf(self, images: "Path | str | ImageIndex | datasets.Dataset") -> "datasets.Dataset":
        """Return the selected images as a Hugging Face dataset, row by row as in the subset.

        Args:
            images: Where the images are. A folder, file or index: their bytes are read into
                memory (`gadc export --as hf` writes them to disk, for `load_dataset`) beside the
                columns of that export. Or a dataset whose rows are the images that were selected
                from: its rows are taken, with its own columns and `rank`, `gain` and `weight`.

        Raises:
            InputError: `source_mismatch` or `source_changed`: these are not the images that were
                selected; `column_exists`: the dataset has a column of one of the three names.
            MissingExtraError: `datasets` is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError(
                "missing_extra", "to_hf needs datasets: pip install 'gadc[hf]'"
            ) from error
        from gadc.hub import dataset_of_images, rows_of_dataset

        if isinstance(images, datasets.Dataset):
            return rows_of_dataset(self.columns(), self.provenance, images)
        return dataset_of_images(self.columns(), self.class_names, images)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a subset and verify that it is what was written.

        Args:
            path: The file, or a folder with a `subset.parquet`.

        Raises:
            InputError: Nothing there (`subset_missing`), another kind of file (`not_a_subset`), or
                one of another schema (`subset_schema`).
            RunError: `corrupt`: not the bytes that were written.
        """
        path = Path(path)
        if path.is_dir():
            path = path / SUBSET_NAME
        if not path.is_file():
            raise InputError("subset_missing", f"there is no {path}; `gadc select` writes it")
        with path.open("rb") as file:
            if file.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
                raise InputError("not_a_subset", f"{path} is not a parquet file")
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as parquet:
                metadata = parquet.schema_arrow.metadata or {}
                n_rows = parquet.metadata.num_rows
                provenance = _verified_provenance(path, metadata)
                _check_schema(path, provenance, parquet.schema_arrow)
                if provenance["n_selected"] != n_rows:
                    raise _corrupt(path)
                columns = parquet.read().to_pydict()
            if _columns_sha256(columns) != provenance["columns_sha256"]:
                raise _corrupt(path)
        except (InputError, RunError):
            raise
        except READ_ERRORS as error:
            raise _corrupt(path) from error
        if not _is_reconciled(provenance):
            raise _corrupt(path)
        return cls(
            index=np.array(columns["index"], dtype=np.int64),
            paths=[unescape_name(text) for text in columns["path"]],
            sha256=columns["sha256"],
            labels=np.array(columns["label"], dtype=np.int32),
            class_name=[unescape_name(text) for text in columns["class_name"]],
            rank=np.array(columns["rank"], dtype=np.int32),
            gain=np.array(columns["gain"], dtype=np.float64),
            weight=np.array(columns["weight"], dtype=np.float64),
            source=[unescape_name(text) for text in columns["source"]],
            provenance=provenance,
        )


def _columns_sha256(columns: dict[str, list[Any]]) -> str:
    sha256 = hashlib.sha256()
    for name in SCHEMA.names:
        sha256.update(canonical_json([name, columns[name]]).encode())
    return sha256.hexdigest()


def _is_reconciled(provenance: dict[str, Any]) -> bool:
    """Tell whether every scanned file is in the pool, in quarantine or excluded."""
    parts = sum(provenance[name] for name in ("n_pool", "n_quarantined", "n_excluded"))
    return bool(provenance["n_scanned"] == parts)


def _verified_provenance(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        raise InputError(
            "not_a_subset", f"{path} has no metadata `gadc`; `gadc select` writes subsets"
        )
    text = metadata[METADATA_KEY]
    if hashlib.sha256(text).hexdigest().encode() != metadata.get(DIGEST_KEY):
        raise _corrupt(path)
    provenance: dict[str, Any] = json.loads(text)
    return provenance


def _check_schema(path: Path, provenance: dict[str, Any], found: pyarrow.Schema) -> None:
    version = provenance.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            "subset_schema",
            f"{path} has schema {version}, this gadc reads {SCHEMA_VERSION}; select again, which "
            "reuses what is unchanged",
        )
    if not found.remove_metadata().equals(SCHEMA):
        raise InputError(
            "subset_schema",
            f"{path} has the columns {', '.join(found.names)}; a subset of schema {version} has "
            f"{', '.join(SCHEMA.names)}, in this order and of gadc's types; select again",
        )


def _corrupt(path: Path) -> RunError:
    return RunError("corrupt", f"{path} is not what was written; select again")
