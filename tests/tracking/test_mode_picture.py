"""The picture of who trained how."""

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb

from fedhq_lightning.report.picture_style import MODE_COLOURS
from fedhq_lightning.run.client_history import ClientHistory
from fedhq_lightning.tracking.mode_picture import MOST_ROWS, mode_picture


def share_of(colour: str, picture: np.ndarray) -> float:
    """Share of the pixels that have exactly this colour."""
    wanted = np.round(np.array(to_rgb(colour)) * 255)
    return float((picture[..., :3] == wanted).all(-1).mean())


def test_every_fit_is_a_cell_in_the_colour_of_its_mode() -> None:
    clients = [
        ClientHistory(0, "phone", {1: "ptq", 2: "ptq", 3: "qat"}),
        ClientHistory(1, "board", {2: "ptq", 3: "ptq"}, {3: "late"}),
    ]
    picture, caption = mode_picture(clients, [1, 2, 3, 4])
    pixels = np.asarray(picture)
    shares = {mode: share_of(colour, pixels) for mode, colour in MODE_COLOURS.items()}
    assert shares["fp"] == 0
    assert 2.5 < shares["ptq"] / shares["qat"] < 4.5, "four cells to one, and the legend's"
    assert "of 2" not in caption


def test_is_the_same_whatever_the_users_style_and_takes_any_name() -> None:
    clients = [ClientHistory("$\\x_{$ \N{CJK UNIFIED IDEOGRAPH-732B}", "phone", {1: "ptq"})]
    picture, _ = mode_picture(clients, [1, 2])
    with matplotlib.rc_context({"text.parse_math": True, "figure.facecolor": "black", "font.size": 30}):
        again, _ = mode_picture(clients, [1, 2])
    assert np.array_equal(np.asarray(picture), np.asarray(again))


def test_many_clients_are_capped_and_said() -> None:
    clients = [ClientHistory(at, "phone", {1: "qat", 2: "qat"} if at % 4 == 0 else {1: "ptq"}) for at in range(1000)]
    picture, caption = mode_picture(clients, [1, 2])
    assert f"The {MOST_ROWS} clients that took part most, of 1,000." in caption
    pixels = np.asarray(picture)
    assert max(pixels.shape) < 1200
    assert share_of(MODE_COLOURS["qat"], pixels) > 5 * share_of(MODE_COLOURS["ptq"], pixels) > 0
