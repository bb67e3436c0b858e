"""Who trained how, over the rounds: a picture of pixels, as Weights & Biases shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedhq_lightning.report.picture_style import LEFT_OUT_MARKS, MODE_COLOURS, own_style, whole_numbers
from fedhq_lightning.run.client_history import ClientHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 300
_MOST_LABELS = 40
_DOTS_PER_INCH = 110


def mode_picture(clients: Sequence[ClientHistory], rounds: Sequence[int]) -> tuple[Any, str]:
    """Clients by rounds, coloured by mode; a ring marks late clients, a bar idle ones, a cross quarantined ones.

    Args:
        clients: In the order of the rows; of more than 300, the 300 that took part most.
        rounds: In the order of the columns, from 1.

    Returns:
        A `PIL.Image.Image`, and what to write below it.
    """
    from PIL import Image

    most = sorted(range(len(clients)), key=lambda at: -len(clients[at].modes))[:MOST_ROWS]
    shown = [clients[at] for at in sorted(most)]
    height = 1.2 + min(8.0, 0.17 * max(len(shown), 6))
    file = io.BytesIO()
    with own_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, height), layout="constrained", dpi=_DOTS_PER_INCH)
        FigureCanvasAgg(figure)
        keys = _draw(figure.subplots(), shown, rounds)
        figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), frameon=False)
        figure.savefig(file, format="png")
    caption = "Mode of each client in each round. Empty: not in the cohort. "
    caption += ", ".join(f"{shape}: {word}" for word, (_, shape) in LEFT_OUT_MARKS.items()).capitalize() + "."
    if len(shown) < len(clients):
        caption += f" The {len(shown)} clients that took part most, of {len(clients):,}."
    return Image.open(file), caption


def _draw(axes: Axes, clients: Sequence[ClientHistory], rounds: Sequence[int]) -> list[Any]:
    """Draw clients by rounds, and return the keys of the legend."""
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    column = {number: position for position, number in enumerate(rounds)}
    image = [[(1.0, 1.0, 1.0, 0.0)] * len(rounds) for _ in clients]
    for row, client in enumerate(clients):
        for number, mode in client.modes.items():
            image[row][column[number]] = to_rgba(MODE_COLOURS[mode])
    extent = (rounds[0] - 0.5, rounds[-1] + 0.5, len(clients) - 0.5, -0.5)
    axes.imshow(image, interpolation="none", aspect="auto", extent=extent)
    keys: list[Any] = [
        Patch(color=colour, label=mode)
        for mode, colour in MODE_COLOURS.items()
        if any(mode in client.modes.values() for client in clients)
    ]
    for word, (marker, _) in LEFT_OUT_MARKS.items():
        places = [(at, row) for row, each in enumerate(clients) for at, left in each.left_out.items() if left == word]
        if places:
            look: dict[str, Any] = {"marker": marker, "markerfacecolor": "none", "markeredgecolor": "#111111"}
            axes.plot(*zip(*places, strict=True), linestyle="none", markersize=4, **look)
            keys.append(Line2D([], [], linestyle="none", label=word, **look))
    if len(clients) <= _MOST_LABELS:
        axes.set_yticks(range(len(clients)), [f"{each.client_id} ({each.tier})" for each in clients], fontsize=8)
    else:
        axes.set_yticks([])
    axes.set_ylabel("client (tier)" if len(clients) <= _MOST_LABELS else f"{len(clients)} clients, slowest tier first")
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(whole_numbers())
    return keys
