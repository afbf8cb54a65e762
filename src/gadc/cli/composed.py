"""Commands that share a long list of options: it is written once, as the parameters of a function.

`select` and `plan` are asked for the same selection. The function that makes the request from the
options declares them; a command declares only what is its own, and is given the request.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

Command = Callable[..., None]


def takes(
    make: Callable[..., Any], *, leave_out: frozenset[str] = frozenset()
) -> Callable[[Command], Command]:
    """Give a command the options of `make`, and call it with what that makes of them.

    Args:
        make: Its parameters are options; an option that the command declares itself, under the
            same name, is the command's in annotation and default, and goes to `make`.
        leave_out: Parameters of `make` that are no options of the command; they keep their default.

    Returns:
        A decorator for a function of a context, a request and options of its own.
    """

    def decorate(command: Command) -> Command:
        own = dict(inspect.signature(command).parameters)
        context = own.pop("context")
        del own["request"]
        shared = {
            name: parameter
            for name, parameter in inspect.signature(make).parameters.items()
            if name not in leave_out
        }
        joined = {**shared, **own}

        @functools.wraps(command)
        def run(context: Any, **options: Any) -> None:
            made = make(**{name: options[name] for name in shared})
            rest = {name: options[name] for name in own if name not in shared}
            command(context, made, **rest)

        parameters = [context, *joined.values()]
        by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate
