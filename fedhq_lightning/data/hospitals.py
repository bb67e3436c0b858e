"""scikit-learn's breast cancer table, dealt to hospitals as CSV files: for trying tables out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.data.csv_data import CSVDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.support.paths import expand_path

_SIZES = ("small", "medium", "large")
_MISSING_EVERY = 23


class BreastCancerHospitals(CSVDataModule):
    """569 tumours in 30 columns, malignant or benign, at hospitals of unequal sizes that see unequal cases.

    Made by fixed rules, without random numbers, from `sklearn.datasets.load_breast_cancer`, to be like tables as they
    come: 29 of the columns are numbers; the thirtieth, the mean radius, is told as the category `size` (small, medium,
    large); every 23rd number of the `worst ...` columns is missing. The first hospitals see the larger tumours, most of
    them malignant, the last ones the smaller. What is read are CSV texts, by the same code as files.

    Args:
        num_hospitals: 2 to 50. Their ids are `hospital-01` and so on.
        batch_size: Training rows in a batch.
        client_holdout: See `CSVDataModule`.

    Raises:
        ConfigurationError: A number outside these bounds.

    Source: Wolberg et al. 1995, Breast Cancer Wisconsin (Diagnostic), UCI, as scikit-learn ships it.
    """

    def __init__(self, num_hospitals: int = 8, batch_size: int = 16, client_holdout: float | None = None) -> None:
        super().__init__(".", "diagnosis", batch_size=batch_size, client_holdout=client_holdout)
        if not 2 <= num_hospitals <= 50:
            raise ConfigurationError(f"num_hospitals {num_hospitals}: must be 2 to 50")
        self.num_hospitals = num_hospitals

    def files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of each hospital's file."""
        check_installed("BreastCancerHospitals", "sklearn")
        from sklearn.datasets import load_breast_cancer

        table = load_breast_cancer()
        radius, names = table.data[:, 0], table.feature_names[1:].tolist()
        sizes = np.digitize(radius, np.quantile(radius, (1 / 3, 2 / 3)))
        rows = [
            [_SIZES[sizes[row]], *_texts(row, names, table.data[row, 1:]), table.target_names[table.target[row]]]
            for row in range(len(radius))
        ]
        for number, own in enumerate(_dealt(radius, self.num_hospitals), start=1):
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["size", *names, self.label])
            writer.writerows(rows[row] for row in own)
            yield f"hospital-{number:02}.csv", text.getvalue().encode()

    def write(self, folder: str | Path) -> None:
        """Write the hospitals' files, as `CSVDataModule(folder, "diagnosis")` reads them.

        Args:
            folder: Made if needed.

        Raises:
            ConfigurationError: It cannot be written.
        """
        place = expand_path(folder, "folder")
        with told_to_user(place):
            place.mkdir(parents=True, exist_ok=True)
        for name, content in self.files():
            write_atomically(place / name, content)


def _texts(row: int, names: Sequence[str], values: NDArray[np.float64]) -> list[str]:
    """A row's numbers, some of which nobody has measured."""
    return [
        "" if name.startswith("worst") and (row + 7 * position) % _MISSING_EVERY == 0 else str(value)
        for position, (name, value) in enumerate(zip(names, values.tolist(), strict=True))
    ]


def _dealt(radius: NDArray[np.float64], num_hospitals: int) -> list[NDArray[np.int64]]:
    """Rows of each hospital: half of all in blocks by radius, each larger than the one before; the others in turn."""
    largest_first = np.argsort(-radius, kind="stable")
    by_radius, in_turn = largest_first[::2], largest_first[1::2]
    weights = np.cumsum(np.arange(1, num_hospitals + 1))
    blocks = np.split(by_radius, weights[:-1] * len(by_radius) // weights[-1])
    return [np.sort(np.concatenate([block, in_turn[at::num_hospitals]])) for at, block in enumerate(blocks)]
