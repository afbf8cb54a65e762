"""The card of a Hugging Face dataset: what was selected, how, and from what."""

import html
import json
import re
from typing import Any

from gadc.errors import InputError
from gadc.storage import escape_name
from gadc.subset import Subset

CARD_NAME = "README.md"
SIZE_LIMITS = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)
"""The Hub's categories of sizes, by the number of rows below which each is right."""
LARGEST_SIZE = "1M<n<10M"
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
MAX_CLASSES_SHOWN = 100
"""A table of a thousand classes is no summary; all of them are in the data."""


def dataset_card(subset: Subset, *, has_captions: bool, license_id: str | None = None) -> str:
    """Return the text of `README.md`, its first lines for machines.

    Args:
        subset: What the dataset holds.
        has_captions: Whether there is a column `text`.
        license_id: As the Hub abbreviates it, such as `cc-by-4.0`; None: it is not known.

    Raises:
        InputError: `bad_license`: no such abbreviation can exist.
    """
    if license_id is not None and not LICENSE.fullmatch(license_id):
        raise InputError(
            "bad_license",
            f"license {license_id!r} must be an abbreviation such as cc-by-4.0; use `other` for "
            "one that has none",
        )
    return (
        f"---\n{_front_matter(subset, has_captions, license_id)}---\n\n{_body(subset, license_id)}"
    )


def _front_matter(subset: Subset, has_captions: bool, license_id: str | None) -> str:
    n_images = subset.n_images
    size = next((name for limit, name in SIZE_LIMITS if n_images < limit), LARGEST_SIZE)
    tasks = ["text-to-image" if has_captions else "unconditional-image-generation"]
    if len(subset.class_names) > 1:
        tasks.append("image-classification")
    lines = [
        "pretty_name: Selected images",
        *([f"license: {license_id}"] if license_id else []),
        "task_categories:",
        *(f"- {task}" for task in tasks),
        "size_categories:",
        f"- {size}",
        "tags:",
        "- gadc",
        "- dataset-condensation",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
    ]
    return "\n".join(lines) + "\n"


def _body(subset: Subset, license_id: str | None) -> str:
    origin = subset.provenance
    licence = (
        f"`{license_id}`, as given at the export."
        if license_id
        else "Not given at the export: that of the source images holds."
    )
    facts = {
        "gadc": origin.get("gadc"),
        "seed": origin.get("seed"),
        "first of each class": origin.get("first"),
        "config_sha256": origin.get("config_sha256"),
        "dataset_sha256 of the source": (origin.get("pool") or {}).get("dataset_sha256"),
        "features_sha256": (origin.get("pool") or {}).get("features_sha256"),
    }
    config = json.dumps(origin.get("config", {}), indent=2, sort_keys=True)
    return "\n".join(
        [
            "# Selected images",
            "",
            f"{subset.n_images:,} of {origin['n_pool']:,} images, chosen by gadc to stand for the "
            "whole when a model is trained on them.",
            "",
            f"{subset.reconciliation}.",
            "",
            "## Columns",
            "",
            "`image`; `label`; `id`, the image in its source; `sha256` of its bytes; `rank`, its "
            "place in the order of selection of its class, so that the lowest ranks are a smaller "
            "subset; `gain`, by how much it lowered the objective; `weight`, how many images of "
            "its class it stands for.",
            "",
            "## Classes",
            "",
            *_class_table(subset),
            "",
            "## Method",
            "",
            *(f"- {name}: {_cell(value)}" for name, value in facts.items() if value is not None),
            "",
            "```json",
            config.replace("```", "` ` `"),
            "```",
            "",
            "## Licence",
            "",
            licence,
            "",
        ]
    )


def _class_table(subset: Subset) -> list[str]:
    counts: dict[int, int] = {}
    for label in subset.labels.tolist():
        counts[label] = counts.get(label, 0) + 1
    names = subset.class_names
    shown = sorted(counts)[:MAX_CLASSES_SHOWN]
    left = len(counts) - len(shown)
    return [
        "| label | class | images |",
        "|---|---|---|",
        *(f"| {label} | {_cell(names[label])} | {counts[label]} |" for label in shown),
        *(["", f"and {left} more."] if left else []),
    ]


def _cell(value: Any) -> str:
    """Return a value as text of a table: no markup, no line break."""
    text = escape_name(str(value)).replace("\\\\", "\\")
    one_line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", html.escape(one_line))
