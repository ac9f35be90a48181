"""The templates of pages, and how numbers and short texts look in them."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .passages import markup


TEMPLATES = Environment(
    loader=PackageLoader("lorif_hf.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def line(value: Any, length: int = 60) -> Markup:
    """One line of at most so many characters, escaped; what cannot be seen in it is shown as a box.

    Example:

    >>> line("a <b>\\x07 c", 8)
    Markup('a &lt;b&gt;<span class=lf-esc>U+0007</span> c')
    """
    return markup([(cut(value, length), "")])[0]


def cut(value: Any, length: int) -> str:
    """One line of at most so many characters, of which only spaces and line breaks are changed."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def signed(value: float) -> str:
    """A score with its sign.

    Example:

    >>> signed(0.01234), signed(-12345.6)
    ('+0.0123', '-12,346')
    """
    return f"{value:+,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:+.3g}"


TEMPLATES.filters.update(line=line, signed=signed)
