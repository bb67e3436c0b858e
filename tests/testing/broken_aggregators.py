"""An aggregator that keeps to the contract, and for each of its sentences one that does not."""

from dataclasses import replace

import torch

from fedhq_lightning.federated.algorithms import Aggregator, FedAvg
from fedhq_lightning.federated.algorithms.aggregator import ClientEnd, ClientTerm


class Halves(ClientTerm):
    def __init__(self, module):
        self.module = module

    def before_step(self, optimizer):
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class Sound(FedAvg):
    """Goes as much of the way to the mean as rounds went before: 1/2, 2/3, 3/4, ..."""

    def __init__(self):
        self.rounds = 0

    def step(self, current, gathered):
        mean = gathered.mean
        self.rounds += 1
        share = self.rounds / (self.rounds + 1)
        moved = {name: current[name].float().lerp(mean[name], share) for name in gathered.parameter_names & mean.keys()}
        return super().step(current, replace(gathered, mean={**mean, **moved}))

    def client_term(self, start):
        return Halves(start.module)

    def state_dict(self):
        return {"rounds": torch.tensor(self.rounds)}

    def load_state_dict(self, state):
        self.rounds = int(state.get("rounds", 0))


class GivesTheMean(Aggregator):
    """In float32, and without what nobody sent."""

    def step(self, current, gathered):
        return gathered.mean


class AddsInPlace(Sound):
    def step(self, current, gathered):
        current["weight"].add_(1.0)
        return super().step(current, gathered)


class KeepsBuffers(Sound):
    def step(self, current, gathered):
        mean = gathered.mean
        sent = {name: mean[name] for name in gathered.parameter_names & mean.keys()}
        return super().step(current, replace(gathered, mean=sent))


class CountsBatches(Sound):
    def step(self, current, gathered):
        following = super().step(current, gathered)
        return following | {"num_batches_tracked": following["num_batches_tracked"] + 1}


class DecaysTheUnsent(Sound):
    def step(self, current, gathered):
        mean = gathered.mean
        following = super().step(current, gathered)
        return following | {name: 0.9 * following[name] for name in following.keys() - mean.keys()}


class StepsByPlace(Sound):
    def step(self, current, gathered):
        following = super().step(current, gathered)
        return following | {"tied": following["tied"] + 1e-3}


class GoesAway(Sound):
    def step(self, current, gathered):
        mean = gathered.mean
        away = {name: 2 * current[name].float() - mean[name] for name in gathered.parameter_names & mean.keys()}
        return super().step(current, replace(gathered, mean={**mean, **away}))


class ScalesByTheFirst(Sound):
    def step(self, current, gathered):
        mean = gathered.mean
        scale = next(iter(mean.values())).norm()
        return super().step(current, replace(gathered, mean={**mean, "bias": scale * mean["bias"]}))


class AddsNoise(Sound):
    def step(self, current, gathered):
        mean = gathered.mean
        noisy = {"weight": mean["weight"] + 0.01 * torch.randn_like(mean["weight"])}
        return super().step(current, replace(gathered, mean={**mean, **noisy}))


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
    class Term(Halves):
        @torch.no_grad()
        def before_step(self, optimizer):
            for parameter in self.module.parameters():
                parameter.mul_(0.9)

    def client_term(self, start):
        return self.Term(start.module)


class NeedsGradients(Sound):
    class Term(Halves):
        def before_step(self, optimizer):
            for parameter in self.module.parameters():
                parameter.grad.mul_(0.5)

    def client_term(self, start):
        return self.Term(start.module)


class KeepsUnsaid(Sound):
    class Term(Halves):
        def finish(self, num_steps):
            return ClientEnd(kept={"steps": torch.tensor(num_steps)})

    def client_term(self, start):
        return self.Term(start.module)


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
    "test_clients_send_beside_the_model_what_was_said": (KeepsUnsaid, AssertionError),
}
