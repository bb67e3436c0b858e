"""report.html: complete, self-contained, accessible, the same every time, and true to the records."""

import base64
import io
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.report import report as report_of_run
from fedhq_lightning.report.allocation_figures import write_allocation_picture
from fedhq_lightning.report.banner import banner
from fedhq_lightning.report.clients_section import clients_section
from fedhq_lightning.report.course_section import course_section
from fedhq_lightning.report.curve_figures import broken_at, enlarged, time_unit
from fedhq_lightning.report.model_section import model_section
from fedhq_lightning.report.numbers_section import numbers_section
from fedhq_lightning.report.picture_style import MODE_COLOURS, PAGE_COLOURS
from fedhq_lightning.report.report import write_report
from fedhq_lightning.report.sections import summary_section
from fedhq_lightning.run.run import Run

from ..small_run import small_rounds, small_summary, write_allocation, write_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


def written(run_dir: Path, *sections: Callable[[Run], str]) -> Path:
    """The report of what is in a folder; of these sections alone where some are named, since pictures take long."""
    with pytest.MonkeyPatch.context() as patch:
        if sections:
            patch.setattr(report_of_run, "_PICTURED", sections)
            patch.setattr(report_of_run, "_WRITTEN", ())
        return write_report(Run(run_dir))


def test_without_matplotlib_pictures_are_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a run is refused for its pictures; the page has each one's description."""
    run_dir = write_allocation(write_run(tmp_path))
    pictured = Page(written(run_dir).read_text())
    described = [attributes["aria-label"] for tag, attributes in pictured.elements if tag == "svg"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match=r"pictures are left out: .*'fedhq-lightning\[report\]'"):
        page = Page(written(run_dir).read_text())
    assert described
    assert not [tag for tag, _ in page.elements if tag == "svg"]
    assert all(text and text in page.text for text in described)
    with pytest.warns(UserWarning, match="pictures are left out"):
        assert write_allocation_picture(run_dir) is None
    assert not list(run_dir.glob("*.svg"))


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


PER_CLASS = {
    "classes": ["ant", "bee", "a class with a very long name", "<dog>"],
    "examples": [40, 30, 20, 0],
    "fp": [0.95, 0.9, 0.85, None],
    "quantized": [0.95, 0.8, 0.9, None],
}
FILES = [
    {
        "name": "model.pt2",
        "runtime": "torch",
        "bytes": 86_400,
        "agreement": {"samples": 64, "bit_equal": 1.0, "same_argmax": 1.0, "largest_difference": 0.0},
    },
    {
        "name": "model.onnx",
        "runtime": "onnxruntime",
        "bytes": 43_700,
        "agreement": {"samples": 500, "bit_equal": 0.98, "same_argmax": 1.0, "largest_difference": 0.0012},
    },
]
_FORMS = {"fp32 in torch": 1.0, "fp32 in onnxruntime": 0.4, "model.pt2": 2.0, "model.onnx": 1.0}


def _measured(scale: float, fp32: str, int8: str) -> dict[str, Any]:
    forms = {
        name: {"ms": ms * scale, "ms_quartiles": [0.9 * ms * scale, 1.2 * ms * scale]} for name, ms in _FORMS.items()
    }
    times = {"fp32": fp32, "int8": int8, "fp32_ms": forms[fp32]["ms"], "int8_ms": forms[int8]["ms"]}
    return {"forms": forms, **times, "speedup": times["fp32_ms"] / times["int8_ms"], "repetitions": 40}


INFERENCE = {
    "threads": 1,
    "fp32_bytes": 248_000,
    "packed_bytes": 33_100,
    "batch_sizes": {
        "1": _measured(0.5, "fp32 in onnxruntime", "model.onnx"),
        "256": _measured(8.0, "fp32 in onnxruntime", "model.pt2") | {"fp32_ms": 40.0, "int8_ms": 16.0, "speedup": 2.5},
    },
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(write_run(tmp_path_factory.mktemp("runs") / "20250101-120000-ab12")).read_text()


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
    assert len(page.named("caption")) == len(page.named("table"))
    scrolling = [each for _, each in page.elements if each.get("tabindex") == "0"]
    assert len(scrolling) == len(page.named("table")) + 1  # and the recipe
    assert all(each.get("role") == "region" and each.get("aria-label") for each in scrolling)


def test_headings_are_in_order_and_linked_to(report: str) -> None:
    page = Page(report)
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later <= before + 1 for before, later in pairwise(levels))
    headings = [each["id"] for each in page.named("h2")]
    assert [(each["href"] or "").removeprefix("#") for each in page.named("a")] == headings
    assert [each["aria-labelledby"] for each in page.named("section")] == headings


def test_contrast_is_enough_on_both_backgrounds(report: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what a picture is made of."""
    style = report[report.index("<style>") : report.index("</style>")]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", part)) for part in style.split("@media", 1))
    assert light["back"] == "#fff"
    assert dark.keys() >= light.keys() >= {"back", "card", "text", "soft", "link", "quantized", "run-0"}
    for colours in (light, dark):
        grounds = [colours["back"], colours["card"]]
        for name, least in (("text", 7.0), ("soft", 4.5), ("link", 4.5)):
            assert min(contrast(colours[name], ground) for ground in grounds) >= least, name
        drawn = {name: colours[name] for name in PAGE_COLOURS if name not in ("grid", "card")}
        for name, colour in (drawn | MODE_COLOURS).items():
            assert contrast(colour, colours["card"]) >= 3.0, name


def test_a_colour_has_one_meaning_on_all_pages() -> None:
    for theme in (0, 1):
        meanings = {name: both[theme] for name, both in PAGE_COLOURS.items()}
        assert meanings.pop("fp") == MODE_COLOURS["fp"], "fp is one thing, as a mode and as a view"
        every = [*meanings.values(), *MODE_COLOURS.values()]
        assert len(set(every)) == len(every)


def contrast(one: str, other: str) -> float:
    from matplotlib.colors import to_rgb

    def luminance(colour: str) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


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


def test_wall_time_is_the_whole_of_it(tmp_path: Path) -> None:
    phases = {"start": 3.0, "set_up": 1.5, "fit": 9.0, "report": 2.0}
    text = written(write_run(tmp_path / "run", small_rounds(), wall_phases=phases), summary_section).read_text()
    assert "<dt>wall time</dt><dd>15.5 s</dd>" in text
    assert "15.5 s: start 3.0 s, set-up 1.5 s, rounds 9.0 s, report 2.0 s" in text
    assert "wall time of the rounds" not in text


def test_every_time_axis_says_its_clock(report: str) -> None:
    pictures = svgs(report)
    assert {"round", "virtual time (min)"} <= set(texts(pictures["metric"]))
    assert "virtual time of one local fit (s)" in texts(pictures["split"])


def markers(svg: ElementTree.Element) -> tuple[int, int]:
    """Marks in the colours of curves; rings in that of text, those of the axes' ticks left out."""
    styles = [element.get("style", "") for element in svg.iter("use")]
    rings = [style for style in styles if "fill" in style and "currentColor" in style]
    return sum("currentColor" not in style for style in styles), len(rings)


def test_what_clients_measured_for_the_allocator_is_part_of_their_time(tmp_path: Path, report: str) -> None:
    assert "analysis" not in texts(svgs(report)["split"])
    rounds = [
        replace(record, clients=tuple(replace(client, analysis_seconds=3600.0) for client in record.clients))
        for record in small_rounds()
    ]
    text = written(write_run(tmp_path, rounds), clients_section).read_text()
    assert {"download", "analysis", "compute", "upload"} <= set(texts(svgs(text)["split"]))
    assert "Slowest: client 8 (board), 1 h 01 min." in Page(text).text


def test_a_point_for_every_evaluated_round_and_a_ring_on_the_best(tmp_path: Path) -> None:
    text = written(write_run(tmp_path, best_round=8), course_section, numbers_section).read_text()
    rounds = small_rounds()
    evaluated = [record for record in rounds if record.metric_fp is not None]
    picture = svgs(text)["metric"]
    # In two panels, since the axis is broken; and one each in the legend.
    assert markers(picture)[0] == 2 * 2 * len(evaluated) + 2
    assert "best (round 8)" in texts(picture)
    assert "The vertical axis is broken in two scales" in Page(text).text
    shown = Page(text).text
    assert f"Best, and deployed: round 8, quantized {rounds[8].metric_quantized:.4f}" in shown
    assert f"after {rounds[8].total_wall_seconds:.1f} s wall and " in shown
    assert "8 (best)" in shown


def test_training_loss_beside_that_on_held_out_data(tmp_path: Path) -> None:
    rounds = small_rounds()
    text = written(write_run(tmp_path / "one"), course_section).read_text()
    assert {"training", "loss", "round"} <= set(texts(svgs(text)["loss"]))
    assert "Training loss (train_loss) by round" in Page(text).text
    assert "training (train_loss) 0.1667 at round 12." in Page(text).text
    more = {"fp/val_loss": 0.5, "quantized/val_loss": 0.75}
    rounds = [replace(record, metrics={**record.metrics, **(more if record.metric_fp else {})}) for record in rounds]
    text = written(write_run(tmp_path / "two", rounds), course_section).read_text()
    assert {"training", "held out, quantized", "held out, fp"} <= set(texts(svgs(text)["loss"]))
    assert "held out, fp (val_loss) 0.5000 at round 12" in Page(text).text
    # What is monitored is shown already.
    text = written(write_run(tmp_path / "three", rounds, metric_name="val_loss"), course_section).read_text()
    assert "held out, fp" not in texts(svgs(text)["loss"])
    silent = [replace(record, metrics={}) for record in rounds]
    assert "loss" not in svgs(written(write_run(tmp_path / "four", silent), course_section).read_text())


def test_what_quantization_changes(report: str) -> None:
    gaps = [
        record.metric_quantized - record.metric_fp
        for record in small_rounds()
        if record.metric_quantized is not None and record.metric_fp is not None
    ]
    assert f"Quantized less fp: {min(gaps):+.4f} to {max(gaps):+.4f}, and {gaps[-1]:+.4f} at round 12." in (
        Page(report).text
    )
    picture = svgs(report)["difference"]
    (bars,) = [each for each in picture.iter("g") if "LineCollection" in each.get("id", "")]
    assert len(list(bars.iter("path"))) == len(gaps)


def test_per_class_and_inference(tmp_path: Path) -> None:
    run = write_run(tmp_path, per_class=PER_CLASS, inference=INFERENCE, files=FILES)
    text = written(run, model_section).read_text()
    page, found = Page(text), svgs(text)
    assert {"classes", "latency", "sizes"} <= found.keys()
    assert "Worst, quantized: class bee, 0.8000. Harmed most by quantization: class bee, -0.1000." in page.text
    assert markers(found["classes"])[0] == 2 * 3 + 2  # the class without examples has none; two in the legend
    assert {"ant (n=40)", "a class with a\N{HORIZONTAL ELLIPSIS} (n=20)", "<dog> (n=0)"} <= set(texts(found["classes"]))
    assert "Batch of 1: model.onnx is fastest, 500 µs: 2.5 times as slow as fp32 in onnxruntime, 200 µs." in page.text
    assert "Batch of 256: model.pt2 is fastest, 16 ms: 2.5 times as fast as fp32 in onnxruntime, 40 ms." in page.text
    assert "Int8 does not pay in time here for a batch of 1." in page.text
    shown = {"model.onnx", "model.pt2", "fp32 in torch", "fp32 in onnxruntime"}
    assert shown < set(texts(found["latency"]))
    assert "the same bits on 64 samples" in page.text
    assert "98.0% of outputs the same bits, same class for 100.00%, largest difference 0.0012 of" in page.text
    assert {"batch of 1", "batch of 256", "wall time of one forward (ms)"} <= set(texts(found["latency"]))
    assert "model.pt2 86.4 kB" in page.text
    assert {"model.pt2", "model.onnx", "float32 weights", "packed weights"} <= set(texts(found["sizes"]))


def test_inference_of_a_run_of_before(tmp_path: Path) -> None:
    times = {"fp32_ms": 40.0, "int8_ms": 16.0, "speedup": 2.5, "repetitions": 5}
    before = {"threads": 1, "fp32_bytes": 248_000, "int8_bytes": 86_400, "packed_bytes": 33_100}
    text = written(write_run(tmp_path, inference=before | {"batch_sizes": {"256": times}}), model_section).read_text()
    assert "Batch of 256: model.pt2 is fastest, 16 ms: 2.5 times as fast as fp32 in torch, 40 ms." in Page(text).text
    assert "does not pay" not in Page(text).text
    assert "model.pt2 86.4 kB" in Page(text).text


def test_a_file_that_was_not_written_says_why(tmp_path: Path) -> None:
    files = [FILES[0], {"name": "model.onnx", "runtime": "onnxruntime", "bytes": None, "reason": "no <onnx> here"}]
    text = written(write_run(tmp_path, files=files, inference=INFERENCE), model_section).read_text()
    assert "no <onnx> here" in Page(text).text


def test_dollars_in_names_are_no_formulas(tmp_path: Path) -> None:
    name = "$\\x_{$ \N{CJK UNIFIED IDEOGRAPH-732B}"  # and no font of matplotlib's has the last
    rounds = [
        replace(each, clients=tuple(replace(client, client_id=name, tier=name) for client in each.clients[:1]))
        for each in small_rounds(num_rounds=4)
    ]
    per_class = PER_CLASS | {"classes": [name, "b$", "c$", "d"]}
    text = written(write_run(tmp_path, rounds, metric_name=name, per_class=per_class)).read_text()
    found = svgs(text)
    assert name in texts(found["modes"])
    assert any(each.startswith(name) for each in texts(found["classes"]))


def test_the_model_of_a_run_without_scheme(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, per_class=PER_CLASS | {"quantized": None}, inference=None)
    text = written(run_dir, model_section).read_text()
    assert "Worst, fp: class a class with a very long name, 0.8500." in Page(text).text
    assert markers(svgs(text)["classes"])[0] == 3 + 1
    assert "latency" not in svgs(text)


def test_a_thousand_classes_show_those_that_change_most(tmp_path: Path) -> None:
    names = [f"class-{number}" for number in range(1000)]
    told = {"classes": names, "examples": [5] * 1000, "fp": [0.5] * 1000}
    told["quantized"] = [0.5 - (0.1 if number > 980 else 0.0) for number in range(1000)]
    path = written(write_run(tmp_path, per_class=told), model_section)
    assert "The 30 classes that quantization changes most, of 1,000." in path.read_text()
    assert "class-999 (n=5)" in path.read_text()
    assert path.stat().st_size < 500_000


def test_the_map_has_each_clients_mode_in_each_round(report: str) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.image import imread

    picture = svgs(report)["modes"]
    (image,) = picture.iter("image")
    data = image.get("href", "").removeprefix("data:image/png;base64,")
    pixels = imread(io.BytesIO(base64.b64decode(data)))
    # Each tier has a line of its own above its clients, slowest tier first.
    rows = ["board", 2, 5, 8, "phone", 1, 4, 7, "server", 0, 3, 6, 9]
    shown = [text for text in texts(picture) if text.isdigit()]
    assert [text for text in texts(picture) if text in ("board", "phone", "server")] == ["board", "phone", "server"]
    assert "".join(str(row) for row in rows if isinstance(row, int)) in "".join(shown)
    rounds = small_rounds()
    modes = {(c.client_id, c.round): c.mode for record in rounds for c in record.clients}
    assert pixels.shape[:2] == (len(rows), 12)
    for row, client_id in enumerate(rows):
        for column in range(12):
            mode = modes.get((client_id, column + 1))  # type: ignore[arg-type]  # none where it is a tier
            pixel = pixels[row, column]
            assert (to_hex(pixel) == MODE_COLOURS[mode]) if mode else (pixel[3] == 0)


def test_why_updates_were_not_used(tmp_path: Path) -> None:
    """Reasons that differ in numbers alone are one."""
    reasons = {1: "a norm of 9.73e+10; 6.79 at most", 2: "a norm of 12; 7 at most", 3: "ValueError: boom (net.py:33)"}
    rounds = [
        replace(
            record,
            clients=tuple(
                replace(client, status="quarantined", reason=reasons[record.round]) if client.client_id == 2 else client
                for client in record.clients
            ),
        )
        for record in small_rounds(num_rounds=3, num_clients=4, cohort=4)
    ]
    page = Page(written(write_run(tmp_path, rounds), clients_section).read_text(encoding="utf-8"))
    assert "Why updates were not used" in page.text
    assert "quarantined: a norm of #; # at most21" in page.text, "two updates of one client"
    assert "quarantined: ValueError: boom (net.py:33)11" in page.text


def test_same_files_same_bytes_whatever_the_users_style(tmp_path: Path, report: str) -> None:
    import matplotlib

    run_dir = write_run(tmp_path / "20250101-120000-ab12")
    with matplotlib.rc_context({"axes.linewidth": 5, "xtick.labelsize": 30, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert written(run_dir).read_text() == report
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_to_draw(tmp_path: Path) -> None:
    modules = "fedhq_lightning.report.report, fedhq_lightning.report.progress"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_an_earlier_report_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_run(tmp_path / "run")
    path = written(run_dir, model_section)
    earlier = path.read_text()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ConfigurationError, match="disk full"):
        written(run_dir, model_section)
    assert path.read_text() == earlier
    assert {file.name for file in run_dir.iterdir()} == {"report.html", "summary.json", "rounds.jsonl", "recipe.yaml"}


def test_missing_or_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"summary\.json: no such file; a run writes it when it ends"):
        written(tmp_path)
    run_dir = write_run(tmp_path / "run")
    (run_dir / "summary.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"summary\.json is damaged: Input should be an object, not \[\]"):
        written(run_dir)
    (run_dir / "summary.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"summary\.json is damaged"):
        written(run_dir)
    run_dir = write_run(tmp_path / "other")
    (run_dir / "rounds.jsonl").unlink()
    with pytest.raises(ConfigurationError, match=r"rounds\.jsonl: no such file"):
        written(run_dir)


def test_a_diverged_run_has_a_report(tmp_path: Path) -> None:
    rounds = small_rounds()
    rounds[-1] = replace(rounds[-1], metric_fp=math.nan, metric_quantized=math.inf, metrics={})
    summary = {"metric_fp": "nan", "metric_quantized": "inf", "worst_client": {"client_id": 1, "metric": "nan"}}
    text = written(write_run(tmp_path / "run", rounds, **summary), course_section).read_text()
    assert "At round 12: quantized inf, fp nan, after " in text
    assert markers(svgs(text)["metric"])[0] == 2 * 2 * 6 + 2
    assert "best (round" not in " ".join(texts(svgs(text)["metric"]))


@pytest.mark.parametrize("kept", [slice(0, 1), slice(0, 0)])
def test_a_run_without_rounds_says_so(tmp_path: Path, kept: slice) -> None:
    rounds = small_rounds()
    run_dir = write_run(tmp_path / "run", rounds)
    lines = (run_dir / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "rounds.jsonl").write_text("".join(lines[kept]))
    text = Page(written(run_dir).read_text()).text
    assert "No client took part." in text
    assert "The deployable model" not in text
    assert ("No round of this run was evaluated." in text) is (kept.stop == 0)


def test_a_run_without_scheme_or_quantized_metric(tmp_path: Path) -> None:
    rounds = [replace(record, metric_quantized=None) for record in small_rounds()]
    run_dir = write_run(tmp_path / "run", rounds, scheme=None, metric_quantized=None, worst_client=None, recipe=None)
    (run_dir / "recipe.yaml").unlink()
    text = Page(written(run_dir).read_text()).text
    assert "not evaluated" in text
    assert "No recipe.yaml." in text
    assert "What quantization changes" not in text


def test_many_clients_and_rounds_stay_small(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", small_rounds(num_rounds=120, num_clients=400, cohort=100))
    path = written(run_dir)
    assert path.stat().st_size < 600_000
    text = Page(path.read_text()).text
    assert "The 120 clients that took part most, of 400." in text
    assert "The 30 slowest of 400 clients." in text
    assert "The first 200 of 400 clients" in text


def test_one_round(tmp_path: Path) -> None:
    text = written(write_run(tmp_path, small_rounds(num_rounds=1))).read_text()
    assert "It is the best round, and deployed." in Page(text).text
    assert {"metric", "modes", "split", "bytes"} <= svgs(text).keys()


def test_an_axis_is_broken_where_there_is_enough_to_see() -> None:
    rising = [0.1, 0.5, 0.8, 0.9, 0.91, 0.92]
    assert broken_at([rising]) == enlarged([rising])
    assert broken_at([[-value for value in rising]]) is not None
    assert broken_at([rising[:1] + rising[3:]]) is None, "four points"
    assert broken_at([rising, [1.5, 1.2, 0.9, 0.91, 0.92, 0.91]]) is None, "a rest on both sides"
    assert broken_at([]) is None


def test_enlarged_to_the_second_half_only_where_that_helps() -> None:
    assert enlarged([[0.1, 0.5, 0.9, 0.92]]) == pytest.approx((0.9 - 0.0016, 0.92 + 0.0016))
    assert enlarged([[2.0, math.nan, 0.5, None], [1.0, 0.9, 0.45, 0.4]]) == pytest.approx((0.392, 0.508))
    assert enlarged([[0.1, 0.2, 0.3, 0.9]]) is None
    assert enlarged([[0.5, 0.5]]) is None
    assert enlarged([]) is None


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


class TestBanner:
    def test_none_where_every_update_counted(self, tmp_path: Path) -> None:
        rounds = [
            replace(each, clients=tuple(replace(c, status="ok") for c in each.clients)) for each in small_rounds()
        ]
        assert banner(Run(write_run(tmp_path, rounds))) == ""

    def test_a_quiet_one_names_clients_and_rounds_without_any(self, tmp_path: Path) -> None:
        rounds = small_rounds(num_rounds=2)
        broken = replace(rounds[2].clients[0], status="quarantined", reason="<NaN> & so on")
        rounds[1] = replace(rounds[1], clients=(), mode_counts={"fp": 0, "ptq": 0, "qat": 0}, quarantined=0, late=0)
        rounds[2] = replace(rounds[2], clients=(broken, *rounds[2].clients[1:]))
        told = banner(Run(write_run(tmp_path, rounds)))
        assert 'class="notice"' in told
        assert f"client {broken.client_id}, in 1 of 1 round: &lt;NaN&gt; &amp; so on" in told
        assert "In round 1 none did: the model stayed as it was." in told

    def test_clients_of_one_reason_share_a_line(self, tmp_path: Path) -> None:
        rounds = small_rounds(num_rounds=1)
        broken = tuple(replace(each, status="quarantined", reason="boom") for each in rounds[1].clients[:3])
        told = banner(Run(write_run(tmp_path, [rounds[0], replace(rounds[1], clients=broken)])))
        assert told.count("<li>") == 1
        assert re.search(r"<li>clients \d, \d, \d, in 1 of 1 round: boom</li>", told)

    def test_a_red_one_where_there_is_no_model(self, tmp_path: Path) -> None:
        text = written(write_run(tmp_path, failure="rounds 1 to 3 had no usable update"), clients_section).read_text()
        (box,) = re.findall(r'<aside class="alarm".*?</aside>', text, flags=re.DOTALL)
        assert "This run has no model to use" in box
        assert "Rounds 1 to 3 had no usable update." in box
        assert text.index(box) < text.index("<nav")
