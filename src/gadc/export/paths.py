"""Lists of the selected images' paths."""

from gadc.errors import InputError
from gadc.images.source import examples
from gadc.subset import Subset


def listed_paths(subset: Subset, *, prefix: str = "") -> list[str]:
    """Return the paths of the selected images, class by class in order of selection.

    Args:
        subset: What to list.
        prefix: Put before each id with a slash between; nothing if empty.
    """
    start = f"{prefix.rstrip('/')}/" if prefix else ""
    return [start + path for path in subset.paths]


def paths_text(paths: list[str], *, null: bool = False) -> str:
    r"""Return a list of paths as text, one a line or, with `null`, each ended by a NUL.

    Raises:
        InputError: A newline in a path, without `null`.
    """
    broken = [path for path in paths if "\n" in path or "\r" in path]
    if broken and not null:
        raise InputError(
            "newline_in_path",
            f"a list of lines can't hold the line break in {examples(broken)}; use --null",
        )
    return "".join(path + ("\0" if null else "\n") for path in paths)
