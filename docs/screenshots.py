"""Pictures of the report and the terminal for these pages, from real runs: docs/figures/*.png and terminal.svg.

Needs Chromium. Run from the root of the repository:

    python docs/screenshots.py                      runs mnist5k-hybrid twice, with two allocators: some minutes
    python docs/screenshots.py RUN_DIR OTHER_RUN    takes finished runs
"""

import argparse
import fcntl
import html
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from PIL import Image

from fedhq_lightning.cli.report_runs import report_runs
from fedhq_lightning.recipe.files import find

FIGURES = Path(__file__).parent / "figures"
LARGEST = 300_000  # bytes of a picture
COLUMNS, LINES = 104, 50
PHONE = 390
_ALLOCATOR = re.compile(r"class_path: fedhq_lightning\.callbacks\.HybridAllocator.*")
_ESCAPE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(\r)|(\n)")


def main() -> None:
    """Make every picture, then put them in their place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR")
    given = [path.resolve() for path in parser.parse_args().run_dirs]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = given or make_runs(folder)
        report, comparison = report_runs(runs[:1], folder / "report.html"), folder / "comparison.html"
        report_runs(runs, comparison)
        picture_of_page(report, folder / "report-desktop.png", (1200, 1700))
        picture_of_page(report, folder / "report-dark.png", (1200, 1000), dark=True, at="clients-and-modes")
        picture_of_phone(report, folder / "report-phone.png", height=1500, columns=4)
        picture_of_page(comparison, folder / "comparison.png", (1200, 1900))
        (folder / "terminal.svg").write_text(picture_of_terminal(folder), encoding="utf-8")
        FIGURES.mkdir(exist_ok=True)
        for path in (*folder.glob("*.png"), folder / "terminal.svg"):
            size = path.stat().st_size
            if size > LARGEST:
                raise SystemExit(f"{path.name}: {size:,} bytes, more than {LARGEST:,}")
            shutil.copy(path, FIGURES / path.name)
            print(f"{FIGURES / path.name}: {size:,} bytes")


def make_runs(folder: Path) -> list[Path]:
    """The demo, and the same with every client in ptq."""
    fixed = folder / "mnist5k-ptq.yaml"
    argument = "class_path: fedhq_lightning.callbacks.FixedAllocator\n      init_args: {allocation: ptq}"
    fixed.write_text(_ALLOCATOR.sub(argument, find("mnist5k-hybrid")[1]), encoding="utf-8")
    for recipe in ("mnist5k-hybrid", str(fixed)):
        subprocess.run([*fedhq(), "run", recipe], cwd=folder, env=environment(), check=True)
    return [next((folder / "runs" / name).iterdir()) for name in ("mnist5k-hybrid", "mnist5k-ptq")]


def fedhq() -> list[str]:
    """The command line of this tree."""
    return [sys.executable, "-m", "fedhq_lightning.cli.main"]


def environment() -> dict[str, str]:
    """For commands in another folder, as in a terminal with colours."""
    path = os.pathsep.join(each for each in (str(Path.cwd()), os.environ.get("PYTHONPATH", "")) if each)
    terminal = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    return os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": path} | terminal


def picture_of_page(page: Path, target: Path, size: tuple[int, int], dark: bool = False, at: str = "") -> None:
    """What a browser window of that size shows, from the section `at` on."""
    chromium = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit("no chromium or google-chrome in PATH")
    arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = (f"--window-size={size[0]},{size[1]}", f"--screenshot={target}")
    if at:
        first = f'section[aria-labelledby="{at}"]'
        style = f"<style>main > :not({first}, {first} ~ section) {{ display: none }}</style>"
        text = page.read_text(encoding="utf-8").replace("</head>", f"{style}</head>", 1)
        page = target.with_suffix(".html")
        page.write_text(text, encoding="utf-8")
    command = [chromium, *arguments, scheme, *window, page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(target) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


def picture_of_phone(page: Path, target: Path, height: int, columns: int) -> None:
    """The top of the page at a phone's width, cut into columns; a headless window is never as narrow, a frame is."""
    text = html.escape(page.read_text(encoding="utf-8"))
    frame = target.with_name("frame.html")
    style = f"width:{PHONE}px;height:{height * columns}px;border:0"
    frame.write_text(f'<body style="margin:0"><iframe style="{style}" srcdoc="{text}"></iframe>', encoding="utf-8")
    whole = target.with_name("whole-phone.png")
    picture_of_page(frame, whole, (PHONE + 110, height * columns))
    gap = 20
    with Image.open(whole) as image:
        joined = Image.new("RGB", (columns * (PHONE + gap) - gap, height), "#8a93a3")
        for column in range(columns):
            part = image.convert("RGB").crop((0, column * height, PHONE, (column + 1) * height))
            joined.paste(part, (column * (PHONE + gap), 0))
    whole.unlink()
    joined.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def picture_of_terminal(folder: Path) -> str:
    """`fedhq run digits-smoke` as a terminal shows it at the end, drawn by rich."""
    from rich.console import Console
    from rich.text import Text

    words = ("run", "digits-smoke", "--trainer.max_rounds=12")
    shown = screen(watched([*fedhq(), *words], folder))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ fedhq {' '.join(words)}", style="bold"))
    console.print(Text.from_ansi(shown))
    svg = console.export_svg(title="fedhq")
    # Without fonts from the network.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def watched(command: list[str], folder: Path) -> str:
    """What a command writes to a terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=folder, env=environment())
    os.close(its)
    written = b""
    try:
        while data := os.read(ours, 65536):
            written += data
    except OSError:  # how Linux says that nobody has the terminal open any more
        pass
    if process.wait():
        raise SystemExit(written.decode(errors="replace"))
    return written.decode()


def screen(written: str) -> str:
    """The lines that stay: rich goes up, and writes lines anew whole."""
    lines, row, at = [""], 0, 0
    for match in _ESCAPE.finditer(written):
        lines[row] += written[at : match.start()]
        at = match.end()
        argument, letter, back, new = match.groups()
        if new:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif letter == "A":
            row = max(0, row - int(argument or 1))
        elif letter == "K":
            lines[row] = ""
        elif letter == "m":
            lines[row] += match[0]
        elif not back and letter not in ("h", "l"):
            raise SystemExit(f"an escape sequence that is not known here: {match[0]!r}")
    return "\n".join(line.rstrip() for line in lines).rstrip()


if __name__ == "__main__":
    main()
