"""Folders of files that are no images yet, for tests that never decode one."""

import os
from pathlib import Path

import pytest

from gadc.errors import InputError
from gadc.images.index import open_index

PICTURE = b"not decoded here"
ODD_NAMES = (
    "plain.jpg",
    "UPPER.JPEG",
    "two.dots.png",
    "with space.webp",
    "new\nline.png",
    "tab\t.png",
    "quote\"'.png",
    "glob*?[a].png",
    "-rf.png",
    "e\u0301.png",
    "\u00e9.png",
    "\U0001f600.png",
    "\u202egnp.png",
    "<script>alert(1).png",
    "{{7*7}}.png",
    "=cmd().png",
    "C:\\x.png",
    "%2e%2e.png",
    os.fsdecode(b"\xff\xfe.png"),
    "n" * 251 + ".png",
)


def make(root: Path, *names: str, content: bytes = PICTURE) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def input_error(code: str, source: Path, **options: object) -> str:
    """Open what can't be opened; return the message."""
    with pytest.raises(InputError) as caught:
        open_index(source, **options)  # type: ignore[arg-type]
    assert caught.value.code == code, caught.value
    return caught.value.message
