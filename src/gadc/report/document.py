"""One HTML file out of templates, styles, scripts and data: nothing is loaded from elsewhere.

The content-security policy names the digest of every script and style sheet in the file, so
nothing else runs, whatever a file's name may try; and `default-src 'none'` forbids all requests.
"""

import base64
import functools
import hashlib
import importlib.resources
import json
import re
from typing import Any

import jinja2
from markupsafe import Markup

from gadc.errors import MissingExtraError
from gadc.portable_names import printable

STYLES = ("page.css",)
SCRIPTS = ("charts.js", "page.js")
EMPTY_DIGEST = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""Of no text: plotly adds an empty style sheet and fills it rule by rule, which is allowed."""
INJECTED_STYLE = re.compile(r'document\.getElementById\("([0-9a-f]{64})"\)\)\{var \w+=document')
"""Styles of maps of the world in plotly's bundle, added unless an element has this id already."""
END_OF_SCRIPT = re.compile(r"</(?=script)|<!--", re.IGNORECASE)


def render(context: dict[str, Any], data: dict[str, Any], *, title: str) -> str:
    """Return the whole page.

    Args:
        context: What the templates show; every text in it is escaped by them.
        data: What the scripts show.
        title: Of the page.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    plotly = plotly_source()
    styles = [_asset(name) for name in STYLES]
    scripts = [plotly, *(_asset(name) for name in SCRIPTS)]
    return (
        _environment()
        .get_template("page.html")
        .render(
            **context,
            title=title,
            policy=_policy(scripts, styles),
            styles=[Markup(style) for style in styles],
            scripts=[Markup(script) for script in scripts],
            occupied_ids=sorted(set(INJECTED_STYLE.findall(plotly))),
            data=Markup(data_block(data)),
        )
    )


def plotly_source() -> str:
    """Return plotly's JavaScript, fit to stand in a script element.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        from plotly import offline
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", "a report needs plotly: pip install 'gadc[report]'"
        ) from error
    source: str = offline.get_plotlyjs()
    return END_OF_SCRIPT.sub(_escaped_end, source)


def _escaped_end(found: re.Match[str]) -> str:
    """Write what would end a script element so that a JavaScript string means the same."""
    return "<\\/" if found[0] == "</" else "<\\!--"


def data_block(value: Any) -> str:
    """Return JSON that can stand in a script element: no `<`, `>` or `&`, and only ASCII."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(scripts: list[str], styles: list[str]) -> str:
    script_digests = " ".join(f"'{_digest(script)}'" for script in scripts)
    style_digests = " ".join(f"'{_digest(style)}'" for style in styles)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {script_digests}",
            f"style-src {style_digests} '{EMPTY_DIGEST}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(text: str) -> str:
    # Browsers hash a script's text after they have made every line end a line feed.
    content = text.replace("\r\n", "\n").replace("\r", "\n").encode()
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode('ascii')}"


def _asset(name: str) -> str:
    return (importlib.resources.files("gadc.report") / "page" / name).read_text("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every text on its way to the page: what is no character, or would hide, becomes visible.
        finalize=_visible,
    )
    environment.filters["number"] = format_number
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["percent"] = format_percent
    environment.filters["rate"] = lambda value: "–" if value is None else f"{value:,.4g}"
    return environment


def _visible(value: Any) -> Any:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join(printable(line) for line in value.split("\n"))


def format_number(value: float | None) -> str:
    """Return a number with four decimals, or as a power of ten; an en dash for none."""
    if value is None:
        return "–"
    return f"{value:.4f}" if 0.0005 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"


def format_percent(value: float | None) -> str:
    """Return a share as a percentage; an en dash for none."""
    if value is None:
        return "–"
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}" if value >= 0.001 else f"{value:.2%}"
