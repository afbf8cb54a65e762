"""Names of files and folders that every file system and every reader of image folders takes."""

import hashlib
import re
import unicodedata

MAX_BYTES = 200
"""File systems allow 255; the rest is for suffixes that other tools add, such as `.txt`."""
FORBIDDEN = frozenset('<>:"/\\|?*%')
"""What Windows refuses, and the escape character itself."""
UNSAFE_FIRST = frozenset("-.~_ ")
"""Options of commands, hidden files, home folders; names starting with `__` are skipped by some."""
UNSAFE_LAST = frozenset(". ")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.I)
SPLIT_WORD = re.compile(
    r"(?<![^-._ 0-9])(train|training|val|valid|validation|dev|test|testing|eval|evaluation)"
    r"(?![^-._ 0-9])",
    re.I,
)
"""Words by which `datasets` sorts the files of an image folder into splits instead of classes."""
DIGEST_CHARACTERS = 8
NOT_PRINTED = frozenset(["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"])
"""Unicode categories of control, direction and broken characters."""


def portable_name(name: str, *, taken: set[str], identity: str | None = None) -> str:
    """Return a name close to `name` that is safe everywhere and not taken.

    Unsafe characters become `%XX` per byte of their UTF-8; names that are too long, or taken, end
    in a digest of `identity`.

    Args:
        name: Anything, empty and undecodable (`surrogateescape`) names too; `/` is no separator.
        taken: Names given before in this folder, see `comparable`; the result is added.
        identity: What tells this one from others of the same name; default: the name.
    """
    safe = _escaped(name)
    if len(safe.encode()) > MAX_BYTES or comparable(safe) in taken:
        safe = _with_digest(safe, name if identity is None else identity)
    taken.add(comparable(safe))
    return safe


def printable(text: str) -> str:
    r"""Return `text` on one line, harmless to whatever shows it: odd characters as `\x1b`."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in NOT_PRINTED
        else character
        for character in text
    )


def comparable(name: str) -> str:
    """Return what two names share if some file system holds them for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _escaped(name: str) -> str:
    if not name:
        return "%"
    last = len(name) - 1
    unsafe = {0} if name[0] in UNSAFE_FIRST or DEVICES.match(name) else set()
    unsafe |= {last} if name[last] in UNSAFE_LAST else set()
    # The last letter: a hexadecimal digit before the rest would start a word again.
    unsafe |= {match.end() - 1 for match in SPLIT_WORD.finditer(name)}
    return "".join(
        _percent(character)
        if place in unsafe or character in FORBIDDEN or not character.isprintable()
        else character
        for place, character in enumerate(name)
    )


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def _split_suffix(name: str) -> tuple[str, str]:
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem and len(suffix) <= 5 else (name, "")


def _with_digest(name: str, identity: str) -> str:
    stem, suffix = _split_suffix(name)
    sha256 = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    tail = f"~{sha256[:DIGEST_CHARACTERS]}{suffix}"
    kept = stem.encode()[: MAX_BYTES - len(tail.encode())].decode("utf-8", "ignore")
    return kept + tail
