"""Hooks of mkdocs: Markdown that GitHub shows as it stands, made into what a browser shows without a network."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert


ROOT = Path(__file__).parents[2]

_PARTS = re.compile(
    r"(?P<code>^```.*?^```)"
    r"|(?P<name>`lorif_hf[\w.]*`)"
    r"|(?P<span>`[^`\n]+`)"
    r"|(?P<block>\$\$.+?\$\$)"
    r"|(?P<math>\$[^$\n]+\$)"
    r"|\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)]+)\)",
    re.DOTALL | re.MULTILINE,
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Formulas become MathML, which needs no script; names of the package and files of the repository are resolved."""
    return _PARTS.sub(_shown, markdown)


def _shown(found: re.Match[str]) -> str:
    if found["name"]:
        name = found["name"].strip("`")
        return f'<autoref identifier="{name}" optional><code>{name}</code></autoref>'
    if found["block"]:
        return convert(found["block"].strip("$ \n"), display="block")
    if found["math"]:
        # In a span: a line that begins with <math> would be taken for a block.
        return f"<span>{convert(found['math'].strip('$'))}</span>"
    if found["path"]:
        # The site holds the pages of docs/ alone; a name of a file says where it is in the repository.
        if not (ROOT / found["path"].partition("#")[0]).exists():
            raise FileNotFoundError(f"a page of docs/ links to {found['path']}, which is not in the repository")
        return found["text"]
    return found[0]
