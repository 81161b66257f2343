"""Templates filled in: the one place in which the page's words meet its tags."""

import html
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.graph_objects import Figure

from processes.quoting import for_script, visible

HERE = Path(__file__).parent
LONGEST = 40  # letters of a name in a chart


def _shown(value: Any) -> Any:
    """A value before it is escaped: every letter of a text can be seen."""
    return visible(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def as_script(value: Any) -> Markup:
    """A value for a script to read, as JSON in which nothing ends the element; NaN is null."""
    return Markup(for_script(value))


def as_chart(figure: Figure) -> Markup:
    """A chart for plotly.js to draw. Arrays of numbers are packed."""
    return as_script(json.loads(figure.to_json()))


@cache
def _templates() -> Environment:
    """Escapes all that is printed, and stops at a name that nobody gave."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"chart": as_chart, "script": as_script}
    return environment


def fill(name: str, **values: Any) -> Markup:
    """The template of this name, its words filled in and escaped."""
    return Markup(_templates().get_template(name).render(values))


def letters(name: object) -> str:
    """A name in a chart. Plotly knows a few tags and entities of its own in texts, and here there are none of them."""
    words = visible(name)
    if len(words) > LONGEST:
        words = f"{words[: LONGEST // 2]}…{words[1 - LONGEST // 2 :]}"
    return html.escape(words, quote=False)
