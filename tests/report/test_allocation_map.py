"""The allocation map: in the report and as a file of its own, true to allocation.json and to the rounds."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.report.allocation_figures import describe_boundary, write_allocation_picture
from fedhq_lightning.report.allocation_section import boundary_section
from fedhq_lightning.report.picture_style import MODE_COLOURS
from fedhq_lightning.report.sections import recipe_section
from fedhq_lightning.run.allocation import RoundBoundary, read_allocation

from ..small_run import EXPLANATION, allotted_rounds, write_allocation, write_run
from .test_report import Page, svgs, texts, written


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_allocation(write_run(tmp_path_factory.mktemp("runs") / "20250101-120000-ab12", allotted_rounds()))


@pytest.fixture(scope="module")
def report(run_dir: Path) -> str:
    return written(run_dir).read_text()


def drawn(svg: ElementTree.Element, colour: str) -> dict[bool, int]:
    """Clients drawn in a colour: filled (True) and hollow (False); not the legend's, which have the text's colour."""
    styles = [re.sub(r"\s", "", use.get("style") or "") for use in svg.iter("use")]
    own = [style for style in styles if f"stroke:{colour}" in style]
    return {True: sum(f"fill:{colour}" in style for style in own), False: sum("fill:" not in style for style in own)}


def shape(svg: ElementTree.Element) -> list[str]:
    return [re.sub(r"\s", "", use.get("style") or "") for use in svg.iter("use")]


class TestReport:
    def test_explanation_and_one_map_for_the_first_a_middle_and_the_last_round(self, report: str) -> None:
        page = Page(report)
        assert "How the clients were allotted" in page.text
        assert EXPLANATION in page.text
        assert [name for name in svgs(report) if name.startswith("map-")] == ["map-1", "map-7", "map-12"]
        assert "T = 63 s, rho = 0.6 (trial 0: slack 0.05, share 0.2). Trained: PTQ 3, QAT 3." in page.text
        assert "T = 106 s, rho = 0.7 (trial 2: slack 0.5, share 0.1)." in page.text

    @pytest.mark.parametrize("number", [1, 7, 12])
    def test_filled_in_the_mode_trained_in_hollow_as_the_boundary_would_have_it(
        self, report: str, run_dir: Path, number: int
    ) -> None:
        allocation = read_allocation(run_dir)
        assert allocation is not None
        boundary = allocation.boundaries[number - 1]
        trained = {client.client_id: client.mode for client in allotted_rounds()[number].clients}
        others = [client for client in allocation.clients if client.client_id not in trained]
        picture = svgs(report)[f"map-{number}"]
        for mode in ("ptq", "qat"):
            expected = sum(allocation.mode_under(client, boundary) == mode for client in others)
            assert drawn(picture, MODE_COLOURS[mode]) == {True: list(trained.values()).count(mode), False: expected}
        assert {"T", "rho", "board", "phone", "server", "cannot hold QAT"} <= set(texts(picture))
        assert "virtual time in QAT, fewest steps (s)" in texts(picture)

    def test_the_boundary_over_the_rounds(self, report: str) -> None:
        text = Page(report).text
        assert "2 boundaries tried against the incumbent. Trial 1 is the incumbent since round 9." in text
        picture = svgs(report)["boundary"]
        assert {"slack", "share", "incumbent", "on trial"} <= set(texts(picture))
        marks = [style for style in shape(picture) if "stroke:var(--trial)" in style]
        assert len(marks) == 2 * 6 + 1  # rounds 3, 4, 7, 8, 11 and 12 in both panels, and the legend's
        for cell in ("3 to 4", "trial 1 challenges trial 0", "+0.500", "11 to 12"):
            assert cell in text

    def test_accessible_and_self_contained_as_the_rest(self, report: str) -> None:
        page = Page(report)
        assert all(len(attributes["aria-label"] or "") > 40 for attributes in page.named("svg"))
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {name for name in re.findall(r'(?:url\(|href=")#([^")]+)', report)} <= set(ids)
        assert "#01010" not in report
        assert "http" not in report

    def test_a_boundary_that_never_moved_has_no_course(self, tmp_path: Path) -> None:
        data = json.loads((write_allocation(write_run(tmp_path)) / "allocation.json").read_text())
        (tmp_path / "allocation.json").write_text(json.dumps(data | {"boundaries": data["boundaries"][:1]}))
        found = svgs(written(tmp_path, boundary_section).read_text())
        assert "map-1" in found
        assert "boundary" not in found

    def test_two_thousand_clients(self, tmp_path: Path) -> None:
        write_allocation(
            write_run(tmp_path, allotted_rounds(num_clients=2000, cohort=100)), num_clients=2000, explanation=""
        )
        path = written(tmp_path, boundary_section)
        assert path.stat().st_size < 600_000
        assert write_allocation_picture(tmp_path) is not None

    def test_no_allocator_no_section_and_a_strange_file_is_no_reason_to_have_no_report(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        assert "allotted" not in written(tmp_path, boundary_section, recipe_section).read_text()
        assert write_allocation_picture(tmp_path) is None
        for content, said in (("{", "damaged"), ('{"mine": 1}', "clients: Field required"), ("[]", "damaged")):
            (tmp_path / "allocation.json").write_text(content)
            text = written(tmp_path, boundary_section, recipe_section).read_text()
            assert "How the clients were allotted" in text
            assert said in text
            assert write_allocation_picture(tmp_path) is None


class TestPicture:
    def test_on_white_with_its_own_colours_and_the_same_every_time(self, run_dir: Path) -> None:
        path = write_allocation_picture(run_dir)
        assert path == run_dir / "allocation.svg"
        text = path.read_text()
        root = ElementTree.fromstring(text)
        assert "var(--" not in text
        assert "currentColor" not in text
        assert "#01010" not in text
        assert re.search(r"fill: #ffffff", text)
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert "round 7: T = 85.8 s" in str(title.text)
        shown = " ".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
        for part in ("round 1", "round 7", "round 12", "T = 63 s, rho = 0.6", "cannot hold QAT"):
            assert part in shown
        assert write_allocation_picture(run_dir) == path
        assert path.read_text() == text

    def test_extremes_are_drawn(self, tmp_path: Path) -> None:
        """No risk at all, T far off, rho above everybody, an unknown time, one tier more than there are markers."""
        write_allocation(write_run(tmp_path, allotted_rounds()))
        data = json.loads((tmp_path / "allocation.json").read_text())
        for number, client in enumerate(data["clients"]):
            client |= {"risk": 0.0, "tier": f"a-device-with-a-long-name-{number}"}
        data["clients"][3]["qat_seconds"] = None
        data["boundaries"] = [{**data["boundaries"][0], "seconds": 1e9, "risk": 5e-324}]
        (tmp_path / "allocation.json").write_text(json.dumps(data))
        path = write_allocation_picture(tmp_path)
        assert path is not None
        text = path.read_text()
        assert "other tiers" in text
        assert "above every client" in text
        assert "nan" not in text.lower().replace("&#", "")


class TestData:
    def test_what_the_boundary_gives(self, run_dir: Path) -> None:
        allocation = read_allocation(run_dir)
        assert allocation is not None
        client = replace(allocation.clients[2], qat_seconds=10.0, risk=0.5, can_qat=True)
        at = RoundBoundary(round=1, slack=0.0, share=0.0, seconds=10.0, risk=0.6)
        assert allocation.mode_under(client, at) == "qat"
        assert allocation.mode_under(client, replace(at, seconds=9.9)) == "ptq"
        assert allocation.mode_under(client, replace(at, seconds=9.9, risk=0.5)) == "qat"
        assert allocation.mode_under(replace(client, can_qat=False), at) == "ptq"
        late = replace(allocation, round_deadline=9.0)
        assert late.mode_under(client, replace(at, risk=0.0)) == "ptq"

    def test_the_deadline_is_the_recipes(self, tmp_path: Path) -> None:
        write_allocation(write_run(tmp_path))
        (tmp_path / "recipe.yaml").write_text("trainer:\n  round_deadline: 90\n")
        allocation = read_allocation(tmp_path)
        assert allocation is not None
        assert allocation.round_deadline == 90.0

    def test_numbers_that_json_has_no_words_for(self, tmp_path: Path) -> None:
        write_allocation(write_run(tmp_path))
        text = (tmp_path / "allocation.json").read_text()
        (tmp_path / "allocation.json").write_text(
            re.sub(r'"qat_seconds": [\d.]+', '"qat_seconds": "inf"', text, count=1)
        )
        allocation = read_allocation(tmp_path)
        assert allocation is not None
        assert allocation.clients[0].qat_seconds == math.inf

    def test_what_is_wrong_is_said(self, tmp_path: Path) -> None:
        write_allocation(write_run(tmp_path))
        text = (tmp_path / "allocation.json").read_text()
        (tmp_path / "allocation.json").write_text(text.replace('"mode": "ptq"', '"mode": "int8"', 1))
        with pytest.raises(
            ConfigurationError,
            match=r"allocation\.json is damaged.*clients.1.mode: Input should be 'fp', 'ptq' or 'qat', not 'int8'",
        ):
            read_allocation(tmp_path)

    def test_a_phrase_for_a_boundary(self) -> None:
        boundary = RoundBoundary(round=1, slack=0.25, share=0.5, seconds=180.0, risk=0.5, trial=3)
        assert describe_boundary(boundary, [0.7]) == "T = 3 min, rho = 0.5 (trial 3: slack 0.25, share 0.5)"
        assert describe_boundary(boundary, [0.1]).startswith("T = 3 min, rho above every client's risk (trial 3")
