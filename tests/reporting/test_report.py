"""report.html: complete, self-contained, accessible, the same every time, and true to the records."""

import base64
import io
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.reporting.canvas import MODE_COLOURS
from fedhq_lightning.reporting.figures import time_unit
from fedhq_lightning.reporting.report import write_report

from ..small_run import small_rounds, small_summary, write_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "20250101-120000-ab12")).read_text()


def svgs(text: str) -> dict[str, ElementTree.Element]:
    """The pictures by the prefix of their ids."""
    found = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    return {re.search(r'id="(.*?)-figure_1"', svg)[1]: ElementTree.fromstring(svg) for svg in found}  # type: ignore[index]  # fails loudly


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


def test_self_contained_without_scripts_or_network(report: str) -> None:
    page = Page(report)
    assert not page.named("script")
    assert not page.named("link")
    assert "http:" not in report
    assert "https:" not in report
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in report
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", report))


def test_readable_on_a_phone_in_the_dark_and_aloud(report: str) -> None:
    page = Page(report)
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert "prefers-color-scheme: dark" in report
    pictures = page.named("svg")
    assert len(pictures) == 6
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 40
        assert attributes["viewbox"]
        assert "width" not in attributes
    assert len(page.named("figcaption")) == len(page.named("figure")) == 6
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.named("th"))


def test_ids_are_unique_and_every_reference_has_its_target(report: str) -> None:
    ids = Counter(attributes["id"] for _, attributes in Page(report).elements if "id" in attributes)
    assert max(ids.values()) == 1
    assert {name for name in re.findall(r'(?:url\(|href=")#([^")]+)', report)} <= ids.keys()


def test_colours_are_the_pages(report: str) -> None:
    for svg in re.findall(r"<svg .*?</svg>", report, flags=re.DOTALL):
        assert "#01010" not in svg
        assert "currentColor" in svg
        assert "#000000" not in svg.replace("stroke: #000000", "")
        assert "#ffffff" not in svg


def test_the_figures_are_those_of_the_summary_and_the_records(report: str) -> None:
    text = Page(report).text
    rounds = small_rounds()
    summary = small_summary(rounds)
    for part in (
        "digits <smoke> & more",
        "Run 20250101-120000-ab12.",
        f"{summary['metric_quantized']:.4f}",
        f"{summary['metric_fp']:.4f}",
        "14 min 15 s",
        "Worst client: 5: val_accuracy 0.8125.",
        "# a recipe with <tags> & signs",
        "2.13.0",
        "4.32 MB up, 17.3 MB down",
        "Slowest: client 8 (board)",
    ):
        assert part in text
    for record in rounds:
        for client in record.clients:
            if client.status != "ok":
                assert f"round {record.round}: {client.status}" in text


def test_every_time_axis_says_its_clock(report: str) -> None:
    pictures = svgs(report)
    assert "wall time (s)" in texts(pictures["metric-wall"])
    assert "virtual time (min)" in texts(pictures["metric-virtual"])
    assert "virtual time of one local fit (s)" in texts(pictures["split"])


def test_a_point_for_every_evaluated_round(report: str) -> None:
    evaluated = [record for record in small_rounds() if record.metric_fp is not None]
    for name in ("metric-round", "metric-wall", "metric-virtual"):
        markers = [
            element for element in svgs(report)[name].iter("use") if "currentColor" not in element.get("style", "")
        ]
        assert len(markers) == 2 * len(evaluated) + 2  # and one each in the legend


def test_the_map_has_each_clients_mode_in_each_round(report: str) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.image import imread

    picture = svgs(report)["modes"]
    (image,) = picture.iter("image")
    data = image.get("href", "").removeprefix("data:image/png;base64,")
    pixels = imread(io.BytesIO(base64.b64decode(data)))
    labels = [text for text in texts(picture) if text.endswith(")") and text[0].isdigit()]
    assert labels[:4] == ["2 (board)", "5 (board)", "8 (board)", "1 (phone)"]
    rounds = small_rounds()
    modes = {(c.client_id, c.round): c.mode for record in rounds for c in record.clients}
    assert pixels.shape[:2] == (len(labels), 12)
    for row, label in enumerate(labels):
        for column in range(12):
            mode = modes.get((int(label.split()[0]), column + 1))
            pixel = pixels[row, column]
            assert (to_hex(pixel) == MODE_COLOURS[mode]) if mode else (pixel[3] == 0)


def test_same_files_same_bytes_whatever_the_users_style(tmp_path: Path, report: str) -> None:
    import matplotlib

    run_dir = write_run(tmp_path / "20250101-120000-ab12")
    with matplotlib.rc_context({"axes.linewidth": 5, "xtick.labelsize": 30, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert write_report(run_dir).read_text() == report
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_to_draw(tmp_path: Path) -> None:
    modules = "fedhq_lightning.reporting.report, fedhq_lightning.reporting.progress"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_an_earlier_report_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_run(tmp_path / "run")
    path = write_report(run_dir)
    earlier = path.read_text()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ConfigurationError, match="disk full"):
        write_report(run_dir)
    assert path.read_text() == earlier
    assert {file.name for file in run_dir.iterdir()} == {"report.html", "summary.json", "rounds.jsonl", "recipe.yaml"}


def test_missing_or_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"summary\.json: no such file; a run writes it when it ends"):
        write_report(tmp_path)
    run_dir = write_run(tmp_path / "run")
    (run_dir / "summary.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"summary\.json is damaged: it holds a list"):
        write_report(run_dir)
    (run_dir / "summary.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"summary\.json is damaged"):
        write_report(run_dir)
    run_dir = write_run(tmp_path / "other")
    (run_dir / "rounds.jsonl").unlink()
    with pytest.raises(ConfigurationError, match=r"rounds\.jsonl: no such file"):
        write_report(run_dir)


def test_a_diverged_run_has_a_report(tmp_path: Path) -> None:
    rounds = small_rounds()
    rounds[-1] = replace(rounds[-1], metric_fp=math.nan, metric_quantized=math.inf, metrics={})
    summary = {"metric_fp": "nan", "metric_quantized": "inf", "worst_client": {"client_id": 1, "metric": "nan"}}
    text = write_report(write_run(tmp_path / "run", rounds, **summary)).read_text()
    assert "At round 12: quantized inf, fp nan." in text
    markers = [
        element for element in svgs(text)["metric-round"].iter("use") if "currentColor" not in element.get("style", "")
    ]
    assert len(markers) == 2 * 6 + 2


@pytest.mark.parametrize("kept", [slice(0, 1), slice(0, 0)])
def test_a_run_without_rounds_says_so(tmp_path: Path, kept: slice) -> None:
    rounds = small_rounds()
    run_dir = write_run(tmp_path / "run", rounds)
    lines = (run_dir / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "rounds.jsonl").write_text("".join(lines[kept]))
    text = Page(write_report(run_dir).read_text()).text
    assert "No client took part." in text
    assert ("No round of this run was evaluated." in text) is (kept.stop == 0)


def test_a_run_without_scheme_or_quantized_metric(tmp_path: Path) -> None:
    rounds = [replace(record, metric_quantized=None) for record in small_rounds()]
    run_dir = write_run(tmp_path / "run", rounds, scheme=None, metric_quantized=None, worst_client=None, recipe=None)
    (run_dir / "recipe.yaml").unlink()
    text = Page(write_report(run_dir).read_text()).text
    assert "not evaluated" in text
    assert "No recipe.yaml." in text


def test_many_clients_and_rounds_stay_small(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", small_rounds(num_rounds=60, num_clients=400, cohort=40))
    path = write_report(run_dir)
    assert path.stat().st_size < 400_000
    text = Page(path.read_text()).text
    assert "The 120 clients that took part most, of 400." in text
    assert "The 30 slowest of 400 clients." in text
    assert "The first 200 of 400 clients" in text


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [
        (0.0, (1.0, "s")),
        (0.4, (0.001, "ms")),
        (119.0, (1.0, "s")),
        (120.0, (60.0, "min")),
        (9000.0, (3600.0, "h")),
        (2e6, (86400.0, "days")),
    ],
)
def test_time_unit(seconds: float, unit: tuple[float, str]) -> None:
    assert time_unit(seconds) == unit
