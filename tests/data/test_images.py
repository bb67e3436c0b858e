import pytest
import torch
from torch.utils.data import DataLoader, Subset

from fedhq_lightning.data.images import ImageDataModule, ImageTensors, collate_images, stratified_split
from fedhq_lightning.errors import ConfigurationError


def small_set(num_examples: int = 10) -> ImageTensors:
    images = torch.arange(num_examples * 2 * 3 * 3, dtype=torch.uint8).reshape(num_examples, 2, 3, 3)
    return ImageTensors(images, torch.arange(num_examples) % 4, mean=[10.0, 20.0], std=[2.0, 4.0])


class SmallModule(ImageDataModule):
    def read(self) -> tuple[ImageTensors, ImageTensors]:
        self.reads = getattr(self, "reads", 0) + 1
        return small_set(), small_set(8)


def test_pixels_are_normalised_per_channel() -> None:
    dataset = small_set()
    image, label = dataset[3]
    raw = dataset.images[3].float()
    assert torch.equal(image, torch.stack([(raw[0] - 10) / 2, (raw[1] - 20) / 4]))
    assert image.dtype == torch.float32
    assert label == 3


def test_batches_equal_examples_collated_one_by_one() -> None:
    dataset = small_set()
    fast = list(DataLoader(dataset, 4, collate_fn=collate_images))
    slow = list(DataLoader(dataset, 4))
    examples = [dataset[index] for index in range(4, 8)]
    assert [len(labels) for _, labels in fast] == [4, 4, 2]
    for (images, labels), (slow_images, slow_labels) in zip(fast, slow, strict=True):
        assert torch.equal(images, slow_images)
        assert torch.equal(labels, slow_labels)
    assert torch.equal(fast[1][0], torch.stack([image for image, _ in examples]))


def test_batches_through_a_subset() -> None:
    dataset = small_set()
    images, labels = next(iter(DataLoader(Subset(dataset, [7, 2, 5]), 3, collate_fn=collate_images)))
    assert labels.tolist() == [3, 2, 1]
    assert torch.equal(images[0], dataset[7][0])


def test_fetching_leaves_the_stored_bytes_alone() -> None:
    dataset = small_set()
    before = dataset.images.clone()
    dataset[0][0].add_(1)
    next(iter(DataLoader(dataset, 4, collate_fn=collate_images)))[0].add_(1)
    assert torch.equal(dataset.images, before)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageTensors(torch.zeros(2, 1, 3, 3), torch.zeros(2), 0, 1)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        ImageTensors(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3), 0, 1)


def test_stratified_split_holds_out_every_fifth_of_each_class() -> None:
    targets = torch.tensor([0] * 10 + [1] * 5 + [2] * 4)
    train, held_out = stratified_split(targets)
    assert held_out.tolist() == [4, 9, 14]
    assert stratified_split(targets, every=4)[1].tolist() == [3, 7, 13, 18]
    assert sorted(train.tolist() + held_out.tolist()) == list(range(19))


def test_module_reads_once_and_shuffles_training_only() -> None:
    module = SmallModule(batch_size=4)
    module.setup("fit")
    module.setup("validate")
    torch.manual_seed(0)
    first = torch.cat([labels for _, labels in module.train_dataloader()])
    second = torch.cat([labels for _, labels in module.train_dataloader()])
    torch.manual_seed(0)
    again = torch.cat([labels for _, labels in module.train_dataloader()])
    assert module.reads == 1
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_held_out_images_of_each_class_are_dealt_to_validation_and_test() -> None:
    module = SmallModule()
    held_out = small_set(8)
    for loader, rows in ((module.val_dataloader(), slice(0, 4)), (module.test_dataloader(), slice(4, 8))):
        ((images, labels),) = loader
        assert labels.tolist() == [0, 1, 2, 3]
        assert torch.equal(images, torch.stack([image for image, _ in held_out])[rows])


def test_evaluation_leaves_global_random_numbers_alone() -> None:
    module = SmallModule()
    before = torch.get_rng_state()
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_size 0: must be 1 or more"):
        SmallModule(batch_size=0)
