"""The console that everything with a table or a display goes through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typing_extensions import override

from fedhq_lightning.support.text import printable


class Terminal(Console):
    """A console that shows control characters of foreign text as escapes, and likewise what its encoding lacks.

    In a notebook it writes lines of text as to a file: each print as a display of its own would have gaps between them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"force_jupyter": False, **settings})

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, self.encoding), segment.style)
