"""An aggregator that keeps to the contract, and for each of its sentences one that does not."""

import torch

from fedhq_lightning.federated.aggregators import Aggregator, FedAvg


class Sound(FedAvg):
    """Goes as much of the way to the mean as rounds went before: 1/2, 2/3, 3/4, ..."""

    def __init__(self):
        self.rounds = 0

    def step(self, current, mean, parameter_names):
        self.rounds += 1
        share = self.rounds / (self.rounds + 1)
        moved = {name: current[name].float().lerp(mean[name], share) for name in parameter_names & mean.keys()}
        return super().step(current, {**mean, **moved}, parameter_names)

    def client_term(self, module):
        def term():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)

        return term

    def state_dict(self):
        return {"rounds": torch.tensor(self.rounds)}

    def load_state_dict(self, state):
        self.rounds = int(state.get("rounds", 0))


class GivesTheMean(Aggregator):
    """In float32, and without what nobody sent."""

    def step(self, current, mean, parameter_names):
        return mean


class AddsInPlace(Sound):
    def step(self, current, mean, parameter_names):
        current["weight"].add_(1.0)
        return super().step(current, mean, parameter_names)


class KeepsBuffers(Sound):
    def step(self, current, mean, parameter_names):
        sent = {name: mean[name] for name in parameter_names & mean.keys()}
        return super().step(current, sent, parameter_names)


class CountsBatches(Sound):
    def step(self, current, mean, parameter_names):
        following = super().step(current, mean, parameter_names)
        return following | {"num_batches_tracked": following["num_batches_tracked"] + 1}


class DecaysTheUnsent(Sound):
    def step(self, current, mean, parameter_names):
        following = super().step(current, mean, parameter_names)
        return following | {name: 0.9 * following[name] for name in following.keys() - mean.keys()}


class StepsByPlace(Sound):
    def step(self, current, mean, parameter_names):
        following = super().step(current, mean, parameter_names)
        return following | {"tied": following["tied"] + 1e-3}


class GoesAway(Sound):
    def step(self, current, mean, parameter_names):
        away = {name: 2 * current[name].float() - mean[name] for name in parameter_names & mean.keys()}
        return super().step(current, {**mean, **away}, parameter_names)


class ScalesByTheFirst(Sound):
    def step(self, current, mean, parameter_names):
        scale = next(iter(mean.values())).norm()
        return super().step(current, {**mean, "bias": scale * mean["bias"]}, parameter_names)


class AddsNoise(Sound):
    def step(self, current, mean, parameter_names):
        noisy = {"weight": mean["weight"] + 0.01 * torch.randn_like(mean["weight"])}
        return super().step(current, {**mean, **noisy}, parameter_names)


class KeepsAnObject(Sound):
    def state_dict(self):
        return {"rounds": self.rounds, "device": torch.device("cpu")}


class Forgets(Sound):
    def load_state_dict(self, state):
        self.rounds = 0


class GoesOn(Sound):
    def load_state_dict(self, state):
        self.rounds = int(state.get("rounds", self.rounds))


class PullsWeights(Sound):
    def client_term(self, module):
        @torch.no_grad()
        def term():
            for parameter in module.parameters():
                parameter.mul_(0.9)

        return term


class NeedsGradients(Sound):
    def client_term(self, module):
        return lambda: [parameter.grad.mul_(0.5) for parameter in module.parameters()]


BROKEN: dict[str, tuple[type[Aggregator], type[BaseException]]] = {
    "test_keeps_names_shapes_and_dtypes": (GivesTheMean, AssertionError),
    "test_inputs_are_not_changed": (AddsInPlace, AssertionError),
    "test_buffers_take_the_mean": (KeepsBuffers, AssertionError),
    "test_whole_numbers_stay": (CountsBatches, AssertionError),
    "test_what_the_clients_do_not_send_stays": (DecaysTheUnsent, AssertionError),
    "test_tied_weights_stay_alike": (StepsByPlace, AssertionError),
    "test_moves_towards_the_mean": (GoesAway, AssertionError),
    "test_the_order_of_names_decides_nothing": (ScalesByTheFirst, AssertionError),
    "test_global_random_numbers_decide_nothing": (AddsNoise, AssertionError),
    "test_state_holds_tensors_and_plain_values": (KeepsAnObject, AssertionError),
    "test_goes_on_from_a_checkpoint": (Forgets, AssertionError),
    "test_nothing_to_load_starts_afresh": (GoesOn, AssertionError),
    "test_the_clients_term_leaves_the_weights_alone": (PullsWeights, AssertionError),
    "test_the_clients_term_takes_frozen_weights": (NeedsGradients, AttributeError),
}
