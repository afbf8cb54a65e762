"""The conditions as the published research code keeps them, read and written.

Targets: one `.pt` file an image, `{"gt_zs": bfloat16 [n_tokens, width]}`, and `total_json.json`,
which maps each image's path to its file. Texts: for each class `<class>.pt`, bfloat16
[1, n_tokens, width], and `<class>_mask.pt`, int64 [1, n_tokens]. These are pickles: they are read
as tensors only, and a file that holds anything else is refused.

Its targets were computed of images that had been mirrored at random, and are used with images that
are mirrored at random once more, so that half of the pairs disagree. What is read here therefore
has one orientation, with which `gadc train` doesn't mirror, and its targets are still mirrored for
half of the images: compute them again where you can.
"""

import collections
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gadc.attach.attach import TextPart, VisualPart
from gadc.errors import InputError
from gadc.images.source import examples
from gadc.storage import digest, exclusive, file_sha256, prepare_output, write_bytes, write_json
from gadc.subset import Subset
from gadc.training.conditions import Conditions

logger = logging.getLogger(__name__)

TARGET_KEY = "gt_zs"
TARGETS_FOLDER = "visual"
"""From which the research code's trainer takes the paths in `total_json.json`."""
TARGETS_LIST = "total_json.json"
TEXTS_FOLDER = "caption_embeddings"
MASK_ENDING = "_mask"
SUFFIX = ".pt"
MAX_LIST_BYTES = 1 << 30


def read_targets(subset: Subset, listing: Path) -> VisualPart:
    """Read the targets of a subset's images.

    Args:
        subset: The images; each is looked for by its path, or by a listed path that ends in it.
        listing: `total_json.json`. Files are looked for beside it, by their whole listed path or
            their name.

    Raises:
        InputError: `bad_research_file`: not as described above, or images without a target;
            `pickle_refused`: a file holds more than tensors.
    """
    found = _listed(listing)
    files = [_file(listing, found[key]) for key in _keys(subset, listing, found)]
    tensors = [_target(path) for path in files]
    for path, tensor in zip(files, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            raise InputError(
                "bad_research_file",
                f"{path} has targets of shape {list(tensor.shape)}, {files[0]} of "
                f"{list(tensors[0].shape)}; they must be equal",
            )
    logger.warning(
        "the research code computes targets of images that it mirrors at random: half of those in "
        "%s may disagree with their image",
        listing,
    )
    return VisualPart(
        torch.stack(tensors)[:, None],
        {
            "source": str(listing),
            "files_sha256": digest([file_sha256(path) for path in files]),
            "orientations": ["as it is"],
        },
    )


def read_texts(subset: Subset, folder: Path) -> TextPart:
    """Read the text embeddings of a subset's classes.

    Args:
        subset: The images; their class names are the names of the files.
        folder: `caption_embeddings`.

    Raises:
        InputError: `bad_research_file`, `pickle_refused`.
    """
    names = list(dict.fromkeys(subset.class_name))
    if bad := [name for name in names if not _can_name_file(name)]:
        raise InputError("bad_research_file", f"no file can have the name of class {bad[0]!r}")
    files = [folder / (name + SUFFIX) for name in names]
    masks = [folder / (name + MASK_ENDING + SUFFIX) for name in names]
    embeddings = [
        _text(path, mask) * _mask(mask)[:, None].to(torch.float32)
        for path, mask in zip(files, masks, strict=True)
    ]
    if len({each.shape for each in embeddings}) > 1:
        raise InputError(
            "bad_research_file", f"the texts in {folder} differ in shape; they must be equal"
        )
    places = {name: place for place, name in enumerate(names)}
    return TextPart(
        torch.stack(embeddings).to(torch.bfloat16),
        torch.tensor([places[name] for name in subset.class_name], dtype=torch.int64),
        {
            "source": str(folder),
            "files_sha256": digest([file_sha256(path) for path in (*files, *masks)]),
        },
    )


def write_research_files(
    subset: Subset, conditions: Conditions, out: Path, *, paths: Sequence[str]
) -> list[Path]:
    """Write conditions in the research code's form; mirrored targets have no place in it.

    Args:
        subset: The images.
        conditions: Theirs.
        out: A folder that gets `visual/` and `caption_embeddings/`, as far as there are such.
        paths: Of the images as that code names them, from `gadc.export.listed_paths`.

    Returns:
        The folders.

    Raises:
        InputError: `export_cannot_hold`: texts that differ within a class, or class names that
            can't name a file; `length_mismatch`.
        RunError: `disk_full`, `locked`.
    """
    conditions = conditions.of_images(subset.paths)
    prepare_output(out)
    folders = []
    with exclusive(out):
        if conditions.visual is not None:
            folders.append(_write_targets(conditions.visual, out / TARGETS_FOLDER, paths))
        if conditions.text is not None and conditions.text_index is not None:
            by_class = _text_of_classes(subset, conditions.text_index)
            folders.append(_write_texts(conditions.text, by_class, out / TEXTS_FOLDER))
    return folders


def _write_targets(visual: torch.Tensor, folder: Path, paths: Sequence[str]) -> Path:
    if len(paths) != len(visual):
        raise InputError("length_mismatch", f"{len(paths)} paths for {len(visual)} images")
    folder.mkdir(exist_ok=True)
    listed = {}
    for row, path in enumerate(paths):
        name = f"s{row:07d}{SUFFIX}"
        _save({TARGET_KEY: visual[row, 0].to(torch.bfloat16).clone()}, folder / name)
        listed[path] = name
    write_json(folder / TARGETS_LIST, listed)
    return folder


def _write_texts(text: torch.Tensor, by_class: dict[str, int], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, place in by_class.items():
        embedding = text[place].to(torch.bfloat16)
        mask = (embedding != 0).any(dim=1).to(torch.int64)
        _save(embedding[None].clone(), folder / (name + SUFFIX))
        _save(mask[None], folder / (name + MASK_ENDING + SUFFIX))
    return folder


def _text_of_classes(subset: Subset, text_index: torch.Tensor) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, place in zip(subset.class_name, text_index.tolist(), strict=True):
        if not _can_name_file(name):
            raise InputError(
                "export_cannot_hold", f"no file can have the name of class {name!r}; rename it"
            )
        if found.setdefault(name, place) != place:
            raise InputError(
                "export_cannot_hold",
                f"the research code has one text for each class; those of {name!r} differ: attach "
                "texts of classes",
            )
    return found


def _can_name_file(name: str) -> bool:
    return bool(name) and not set(name) & set("/\0") and name not in (".", "..")


def _save(value: Any, path: Path) -> None:
    content = io.BytesIO()
    torch.save(value, content)
    write_bytes(path, content.getvalue())


def _listed(listing: Path) -> dict[str, str]:
    try:
        if listing.stat().st_size > MAX_LIST_BYTES:
            raise ValueError(f"more than {MAX_LIST_BYTES} bytes")
        found = json.loads(listing.read_bytes())
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("it must map paths to files")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("bad_research_file", f"can't read {listing}: {error}") from error
    return found


def _keys(subset: Subset, listing: Path, found: dict[str, str]) -> list[str]:
    """Return the listed path of each image."""
    by_name = collections.defaultdict(list)
    for key in found:
        by_name[key.rsplit("/", 1)[-1]].append(key)
    keys, missing = [], []
    for path in subset.paths:
        candidates = [
            key
            for key in by_name[path.rsplit("/", 1)[-1]]
            if key == path or key.endswith("/" + path)
        ]
        if len(candidates) == 1:
            keys.append(candidates[0])
        else:
            missing.append(path)
    if missing:
        raise InputError(
            "bad_research_file",
            f"{listing} has no target, or several, for {len(missing)} of the {subset.n_images} "
            f"images: {examples(missing)}",
        )
    return keys


def _file(listing: Path, named: str) -> Path:
    """Return where a listed file is: the list may have been moved together with its files."""
    places = [listing.parent / named, listing.parent / Path(named).name]
    for place in places:
        if place.is_file():
            return place
    raise InputError("bad_research_file", f"{listing} names {named}, which is not beside it")


def _target(path: Path) -> torch.Tensor:
    held = _load(path)
    target = held.get(TARGET_KEY) if isinstance(held, dict) else None
    return _checked(target, path, f"`{TARGET_KEY}` [n_tokens, width]", n_dimensions=2)


def _text(path: Path, mask: Path) -> torch.Tensor:
    text = _checked(_load(path), path, "a text [1, n_tokens, width]", n_dimensions=3)[0].float()
    if len(_mask(mask)) != len(text):
        raise InputError("bad_research_file", f"{mask} doesn't fit {path} of {len(text)} tokens")
    return text


def _mask(path: Path) -> torch.Tensor:
    held = _load(path)
    if not (isinstance(held, torch.Tensor) and held.ndim == 2 and len(held) == 1):
        raise InputError("bad_research_file", f"{path} must hold a mask [1, n_tokens]")
    return held[0] != 0


def _checked(held: Any, path: Path, what: str, *, n_dimensions: int) -> torch.Tensor:
    is_plain = isinstance(held, torch.Tensor) and held.layout == torch.strided and not held.is_meta
    is_right = is_plain and held.is_floating_point()
    if not is_right or held.ndim != n_dimensions or 0 in held.shape:
        raise InputError("bad_research_file", f"{path} must hold {what}")
    if not torch.isfinite(held).all():
        raise InputError("bad_research_file", f"{path} holds NaN or infinity")
    found: torch.Tensor = held
    return found


def _load(path: Path) -> Any:
    """Read a file of `torch.save` as tensors and plain containers, and nothing else."""
    if not path.is_file():
        raise InputError("bad_research_file", f"there is no {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError("bad_research_file", f"can't read {path}: {reason}") from error
    except Exception as error:  # noqa: BLE001 - `UnpicklingError`, or whatever a pickle asks for
        raise InputError(
            "pickle_refused",
            f"{path} holds more than tensors, whose loading can run code: {type(error).__name__}",
        ) from error
