"""Data that keep to the contract, and for each of its sentences data that do not."""

import random

import torch
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.data import FederatedDataModule

from ..small_federation import SmallData as Sound


class NamesOneTwice(Sound):
    @property
    def client_ids(self):
        return [0, 1, 1]


class GrowsWithEverySetup(Sound):
    def setup(self, stage):
        self.sizes[len(self.sizes)] = 5


class SizesInFloats(Sound):
    def num_examples(self, client_id):
        return float(self.sizes[client_id])


class CountsBatches(Sound):
    def num_examples(self, client_id):
        return len(self.train_dataloader(client_id))


class Passes:
    """A loader that is its own iterator, so that it is used up after a pass."""

    def __init__(self, loader, length):
        self.dataset, self.length, self.batches = loader.dataset, length, iter(list(loader))

    def __len__(self):
        return self.length

    def __iter__(self):
        return self.batches


class MiscountsBatches(Sound):
    def train_dataloader(self, client_id):
        loader = super().train_dataloader(client_id)
        return Passes(loader, len(loader) + 1)


class GivesOnePass(Sound):
    def train_dataloader(self, client_id):
        loader = super().train_dataloader(client_id)
        return Passes(loader, len(loader))


class ShufflesWithOneGenerator(Sound):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def train_dataloader(self, client_id):
        return DataLoader(self.dataset(client_id), self.batch_size, shuffle=True, generator=self.generator)


class CountsOnlyItsClasses(Sound):
    def label_counts(self, client_id):
        return super().label_counts(client_id)[: 1 + list(self.sizes).index(client_id) % 3]


class CountsHalf(Sound):
    def label_counts(self, client_id):
        return super().label_counts(client_id) // 2


class CalibratesAtRandom(Sound):
    def calibration_batch(self, client_id):
        return next(iter(self.train_dataloader(client_id)))


class Reseeds(Sound):
    def calibration_batch(self, client_id):
        random.seed(0)
        return super().calibration_batch(client_id)


class CalibratesOnInputsAlone(Sound):
    def calibration_batch(self, client_id):
        return super().calibration_batch(client_id)[0]


class HoldsOthersBackEachTime(Sound):
    def client_val_dataloader(self, client_id):
        return self.train_dataloader(client_id)


class HoldsNothingOut(Sound):
    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.empty(0, 12)))


BROKEN: dict[str, tuple[type[FederatedDataModule], type[BaseException]]] = {
    "test_ids_are_plain_and_unique": (NamesOneTwice, AssertionError),
    "test_ids_are_stable": (GrowsWithEverySetup, AssertionError),
    "test_sizes_are_whole_numbers": (SizesInFloats, AssertionError),
    "test_sizes_are_those_of_the_loaders": (CountsBatches, AssertionError),
    "test_loaders_know_their_length": (MiscountsBatches, AssertionError),
    "test_loaders_begin_again": (GivesOnePass, AssertionError),
    "test_the_same_seed_draws_the_same_batches": (ShufflesWithOneGenerator, AssertionError),
    "test_label_counts_are_whole_numbers_of_classes": (CountsOnlyItsClasses, AssertionError),
    "test_label_counts_sum_to_the_examples": (CountsHalf, AssertionError),
    "test_calibration_batches_are_fixed": (CalibratesAtRandom, AssertionError),
    "test_calibration_batches_disturb_nothing": (Reseeds, AssertionError),
    "test_calibration_batches_are_like_training_batches": (CalibratesOnInputsAlone, AssertionError),
    "test_held_out_batches_are_given": (HoldsNothingOut, AssertionError),
    "test_what_clients_hold_back_is_fixed": (HoldsOthersBackEachTime, AssertionError),
}
