"""scikit-learn's handwritten digits: 1,797 tiny images, for runs of seconds."""

import torch

from fedhq_lightning.data.images import ImageDataModule, ImageTensors, stratified_split
from fedhq_lightning.support.extras import check_installed

MEAN = 4.884
STD = 6.017


class Digits(ImageDataModule):
    """1,797 handwritten digits, (1, 8, 8) float32; 1,442 for training, 179 for validation, 176 for test.

    Pixels, 0 to 16 in the file, are normalised with the mean and standard deviation of all images.

    Args:
        batch_size: Examples per training batch, >= 1.

    Raises:
        ConfigurationError: scikit-learn is not installed, or `batch_size` is below 1.

    Source: `sklearn.datasets.load_digits`; Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI.
    """

    def read(self) -> tuple[ImageTensors, ImageTensors]:
        """Read scikit-learn's copy and split it."""
        check_installed("Digits", "sklearn")
        from sklearn.datasets import load_digits

        data = load_digits()
        images = torch.from_numpy(data.images).to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8)
        targets = torch.from_numpy(data.target).long()
        train, held_out = stratified_split(targets)
        return (
            ImageTensors(images[train], targets[train], MEAN, STD),
            ImageTensors(images[held_out], targets[held_out], MEAN, STD),
        )
