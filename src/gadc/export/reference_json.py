"""The flat list of paths that GADC's research code trains on, `test_10.json`."""

import json
from collections.abc import Sequence
from pathlib import Path

from gadc.errors import InputError
from gadc.export.folder import write_if_different
from gadc.export.paths import listed_paths
from gadc.storage import prepare_output
from gadc.subset import Subset


def reference_json(paths: list[str]) -> str:
    """Return paths as the flat JSON list that GADC's research code reads.

    Undecodable bytes of a name become lone surrogates, which Python's `json` reads back.
    """
    return json.dumps(paths, indent=0) + "\n"


def export_reference_json(
    subset: Subset, out: Path, *, sizes: Sequence[int], prefix: str = ""
) -> dict[int, Path]:
    """Write one list per size, `out/test_<size>.json`, as the research code looks for them.

    A size counts images per class: of the 1,000 classes of ImageNet, 10,000 images are
    `test_10.json`. The list goes class by class in order of selection.

    Args:
        subset: The largest selection; the others are the first of each class, which is a good
            subset where it is one of the sizes of a nested selection.
        out: A folder; lists of the same name must hold the same.
        sizes: Images per class, each at least 1 and none above what the subset has.
        prefix: See `listed_paths`; the research code looks paths up as its image folder gives
            them, so this is the folder that its configuration names.

    Returns:
        The file of each size.

    Raises:
        InputError: `first_range`: a size out of range; `output_exists`: a list is there already
            and holds something else.
    """
    texts = {
        size: reference_json(listed_paths(subset.first(size), prefix=prefix)) for size in sizes
    }
    prepare_output(out)
    paths = {size: out / f"test_{size}.json" for size in sizes}
    for size, path in paths.items():
        if path.exists() and path.read_bytes() != texts[size].encode():
            raise InputError(
                "output_exists",
                f"{path} exists and holds something else; remove it or name another",
            )
    for size, path in paths.items():
        write_if_different(path, texts[size].encode())
    return paths
