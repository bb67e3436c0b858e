"""What the site needs beyond the pages in `docs/`, so that Markdown stays as a repository shows it.

Contributing and changes lie at the top of the repository and become pages. Lists within lists are indented by two
spaces, as GitHub takes them; Python-Markdown wants four.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_INNER_ITEM = re.compile(r"^((?:  )+)(?=[-*] |\d+\. )", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the top, as if they lay in `docs/`."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        for other, target in PAGES.items():
            text = text.replace(f"]({target})", f"]({other})")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Indent inner lists for Python-Markdown, outside of code."""
    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _INNER_ITEM.sub(r"\1\1", part) for part in parts)
