"""Options that take several values after one name: `--per-class 10 50`."""

import os
from typing import Any, ClassVar

from typer.core import TyperCommand

from gadc.errors import InputError


class ManyValues(TyperCommand):
    """A command that reads `--option a b` as `--option a --option b`, for the options in `many`.

    Click takes one value after each name. Values end at the next option, at what is no whole
    number where numbers are wanted, and at an existing path, which is DATA. `a,b` does as well.
    """

    many: ClassVar[dict[str, type]] = {"--methods": str, "--per-class": int, "--measures": str}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spread values over repeated options, then parse as ever."""
        return super().parse_args(ctx, self._spread(args))

    def _spread(self, args: list[str]) -> list[str]:
        spread: list[str] = []
        option, has_none_yet = "", False
        for position, word in enumerate(args):
            name, has_value, value = word.partition("=")
            if word.startswith("-") or not option:
                spread += [option] if has_none_yet else []
                option, has_none_yet = (name, not has_value) if name in self.many else ("", False)
                if word == "--":
                    return spread + args[position:]
                if not option:
                    spread.append(word)
                elif has_value:
                    spread += self._repeated(option, value)
            elif has_none_yet or self._is_value(option, word):
                spread += self._repeated(option, word)
                has_none_yet = False
            else:
                spread.append(word)
                option = ""
        return spread + ([option] if has_none_yet else [])

    def _repeated(self, option: str, value: str) -> list[str]:
        return [part for item in value.split(",") if item for part in (option, item)]

    def _is_value(self, option: str, word: str) -> bool:
        if self.many[option] is int:
            return all(item.isdecimal() for item in word.split(","))
        return not os.path.exists(word)


def as_numbers(values: list[str], name: str) -> tuple[int, ...]:
    """Return the whole numbers that an option was given.

    Raises:
        InputError: `bad_sizes`.
    """
    try:
        return tuple(int(value) for value in values)
    except ValueError as error:
        raise InputError(
            "bad_sizes", f"{name}={' '.join(values)} must be whole numbers, such as 10 50"
        ) from error
