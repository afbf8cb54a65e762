"""WebDataset shards: tar archives whose members are grouped into samples by their names."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.images.faults import FaultCode
from gadc.images.files import Stamp, read_range
from gadc.images.source import (
    IMAGE_SUFFIXES,
    NO_IMAGE_SUFFIX,
    Excluded,
    ImageIndex,
    LabelChoice,
    OnError,
    Quarantined,
    encode_labels,
    no_images,
    reason_to_exclude,
    suffix,
)
from gadc.images.tar import Member, TarDamage, read_members

SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]+)", re.DOTALL)
"""`<key>.<extension>`: the key ends at the first dot of the last path component."""
LABEL_EXTENSIONS = ("cls", "json")
"""Where a sample's label is looked for, in this order."""
JSON_LABEL_KEYS = ("label", "cls", "class", "class_name")
INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
MAX_LABEL_BYTES = 1 << 20

OTHER_IMAGE = "further image of a sample"
NO_IMAGE = "belongs to no image"


class ShardReader:
    """Images inside archives, read by offset."""

    def __init__(
        self,
        paths: Sequence[str],
        stamps: Sequence[Stamp],
        shards: NDArray[np.int64],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        self.paths, self.stamps = paths, stamps
        self.shards, self.offsets, self.sizes = shards, offsets, sizes

    def read(self, position: int) -> bytes:
        """Return the member's bytes."""
        shard = int(self.shards[position])
        return read_range(
            self.paths[shard],
            self.stamps[shard],
            offset=int(self.offsets[position]),
            n_bytes=int(self.sizes[position]),
        )

    def path(self, position: int) -> str | None:
        """Return None: there is no file of its own."""
        return None


class _Item(NamedTuple):
    id: str
    shard: int
    offset: int
    n_bytes: int
    label: int | str | None


def index_shards(
    source: Path,
    shards: Sequence[tuple[str, str]],
    *,
    excluded: Sequence[Excluded] = (),
    labels: LabelChoice = "auto",
    on_error: OnError = "fail",
) -> ImageIndex:
    """Build the index of tar shards; only headers and labels are read.

    A sample is the members that share a key; its label comes from `.cls` or `.json`. The members
    of a sample that has an image are not counted apart from it.

    Args:
        source: What the user named.
        shards: (name, path) of each archive.
        excluded: Files beside the archives.
        labels: `auto` takes labels if there are any.
        on_error: What to do with a shard that is cut or corrupt, a sample whose members are not
            adjacent, and an image without a label among labelled ones: stop, or set it aside.

    Raises:
        InputError: No images, or a fault under `on_error="fail"`.
    """
    scan = _ShardScan(on_error, wants_labels=bool(labels))
    stamps = [scan.read_shard(number, *shard) for number, shard in enumerate(shards)]
    items = scan.items
    class_of: NDArray[np.int64] | None = None
    class_names: list[str] = []
    if any(item.label is not None for item in items):
        for item in items:
            if item.label is None:
                scan.fault("missing_label", item.id, "has no label, and others have")
        items = [item for item in items if item.label is not None]
        class_of, class_names = encode_labels(
            [item.label for item in items if item.label is not None]
        )
    elif labels is True:
        raise InputError(
            "no_labels", f"no sample of {source} has a .cls or .json label; ask for no labels"
        )
    left_out = [*excluded, *scan.excluded]
    if not items:
        raise no_images(source, left_out, scan.quarantined)
    reader = ShardReader(
        [path for _, path in shards],
        stamps,
        np.array([item.shard for item in items], np.int64),
        np.array([item.offset for item in items], np.int64),
        np.array([item.n_bytes for item in items], np.int64),
    )
    ids = [item.id for item in items]
    return ImageIndex(source, "wds", ids, class_of, class_names, left_out, scan.quarantined, reader)


class _ShardScan:
    def __init__(self, on_error: OnError, *, wants_labels: bool) -> None:
        self.on_error, self.wants_labels = on_error, wants_labels
        self.items: list[_Item] = []
        self.excluded: list[Excluded] = []
        self.quarantined: list[Quarantined] = []

    def fault(self, code: FaultCode, path: str, message: str) -> None:
        """Stop, or set `path` aside, as the user chose."""
        if self.on_error == "fail":
            raise InputError(
                code, f"{path}: {message}; repair it, or set bad items aside with on_error"
            )
        self.quarantined.append(Quarantined(path, code, message))

    def read_shard(self, number: int, shard: str, path: str) -> Stamp:
        """Add the samples of one archive."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError("unreadable_source", f"can't read {path}: {error.strerror}") from error
        try:
            stamp = Stamp.of(os.fstat(descriptor))
            samples, split_keys = self.group_members(descriptor, stamp.n_bytes, shard)
            found: list[_Item] = []
            for key, members in samples.items():
                for image in self.choose_images(key, members, shard):
                    name = f"{shard}/{image.name}"
                    if key in split_keys:
                        message = f"the members of sample {key!r} are not adjacent"
                        self.fault("unsafe_member", name, message)
                        continue
                    try:
                        label = read_label(descriptor, key, members) if self.wants_labels else None
                    except ValueError as error:
                        self.fault("missing_label", name, str(error))
                        continue
                    found.append(_Item(name, number, image.offset, image.n_bytes, label))
            self.items += sorted(found, key=lambda item: item.offset)
        finally:
            os.close(descriptor)
        return stamp

    def group_members(
        self, descriptor: int, n_bytes: int, shard: str
    ) -> tuple[dict[str, list[Member]], set[str]]:
        """Return the safe members of each key, and the keys whose members are not adjacent."""
        names: set[str] = set()
        samples: dict[str, list[Member]] = {}
        split_keys: set[str] = set()
        previous_key = None
        try:
            for member in read_members(descriptor, n_bytes):
                path = f"{shard}/{member.name}"
                hazard = "name used twice" if member.name in names else member.hazard
                names.add(member.name)
                if hazard:
                    self.quarantined.append(Quarantined(path, "unsafe_member", hazard))
                    continue
                reason = reason_to_exclude(member.name)
                parts = SAMPLE_NAME.fullmatch(member.name)
                if parts is None or reason not in (None, NO_IMAGE_SUFFIX):
                    self.excluded.append(Excluded(path, reason or NO_IMAGE))
                    continue
                key = parts[1]
                if key in samples and key != previous_key:
                    split_keys.add(key)
                samples.setdefault(key, []).append(member)
                previous_key = key
        except TarDamage as damage:
            self.fault("truncated", shard, str(damage))
        return samples, split_keys

    def choose_images(self, key: str, members: Sequence[Member], shard: str) -> list[Member]:
        """Return the image of a sample: `a.jpg` rather than `a.mask.png`; exclude the others."""
        images = [member for member in members if suffix(member.name) in IMAGE_SUFFIXES]
        plain = [member for member in images if "." not in _extension(key, member)]
        chosen = plain or images
        if chosen:
            rest = [(member, OTHER_IMAGE) for member in images if member not in chosen]
        else:
            rest = [(member, NO_IMAGE) for member in members]
        self.excluded += [Excluded(f"{shard}/{member.name}", reason) for member, reason in rest]
        return chosen


def read_label(descriptor: int, key: str, members: Sequence[Member]) -> int | str | None:
    """Return a sample's label: an integer, a class name, or None without one.

    Raises:
        ValueError: There is a label, but it is no integer from 0 and no text.
    """
    by_extension = {_extension(key, member): member for member in members}
    for extension in LABEL_EXTENSIONS:
        member = by_extension.get(extension)
        if member is None:
            continue
        if member.n_bytes > MAX_LABEL_BYTES:
            raise ValueError(f"its .{extension} is {member.n_bytes} bytes long")
        content = os.pread(descriptor, member.n_bytes, member.offset)
        value = _text_label(content) if extension == "cls" else _json_label(content)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise ValueError(f"its label {value!r:.80} is no integer and no text")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"its label is {value}; labels start at 0")
        return value
    return None


def _extension(key: str, member: Member) -> str:
    return member.name[len(key) + 1 :].lower()


def _text_label(content: bytes) -> int | str:
    text = content.decode("utf-8").strip()
    return int(text) if INTEGER.fullmatch(text) else text


def _json_label(content: bytes) -> object:
    try:
        record = json.loads(content)
    except RecursionError:
        raise ValueError("its .json is nested too deeply") from None
    if not isinstance(record, dict):
        return None
    return next((record[key] for key in JSON_LABEL_KEYS if key in record), None)
