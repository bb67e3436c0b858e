"""What every aggregator keeps to, whatever its step."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fedhq_lightning.federated.algorithms.aggregator import Aggregator, ClientEnd, ClientStart, ClientTerm, Gathered
from fedhq_lightning.testing.host_state import generator_states, seeded
from fedhq_lightning.testing.made_states import PARAMETERS, global_state, mean_of_clients
from fedhq_lightning.testing.same_values import not_plain, same_values, through_checkpoint
from fedhq_lightning.types import StateDict


class AggregatorContract:
    """Inherit, give `make`, and pytest runs the contract: `class TestMine(AggregatorContract): make = Mine`."""

    def make(self) -> Aggregator:
        """A new aggregator with the same settings at every call."""
        raise NotImplementedError(f"{type(self).__name__} gives no `make`: it returns a new aggregator at every call")

    def play(self, aggregator: Aggregator, state: StateDict, rounds: Iterable[int]) -> list[StateDict]:
        """The global models after these rounds, each with a mean of its own."""
        following = []
        for number in rounds:
            state = aggregator.step(state, self.gathered(aggregator, mean_of_clients(number)))
            following.append(state)
        return following

    def gathered(self, aggregator: Aggregator, mean: StateDict) -> Gathered:
        """What a round comes to whose clients send this mean, and small numbers beside it."""
        current = global_state()
        beside = aggregator.beside_up({name: current[name] for name in current if name in PARAMETERS})
        return Gathered(mean, PARAMETERS, {name: torch.full_like(value, 0.01) for name, value in beside.items()}, 0.5)

    def begun(self, aggregator: Aggregator, module: nn.Module) -> ClientTerm | None:
        """The term of a client that takes part for the first time."""
        beside = aggregator.beside_down({name: value.detach() for name, value in module.named_parameters()})
        return aggregator.client_term(ClientStart(module, beside))

    def test_keeps_names_shapes_and_dtypes(self) -> None:
        """The next model has the names, in their order, the shapes and the dtypes of the current one, and no graph."""
        current = global_state()
        aggregator = self.make()
        following = aggregator.step(current, self.gathered(aggregator, mean_of_clients()))
        assert list(following) == list(current)
        for name, value in following.items():
            assert (value.shape, value.dtype) == (current[name].shape, current[name].dtype), name
            assert not value.requires_grad, name

    def test_inputs_are_not_changed(self) -> None:
        """A step changes neither what it is given nor a model that an earlier step gave."""
        current, mean, aggregator = global_state(), mean_of_clients(), self.make()
        following = aggregator.step(current, self.gathered(aggregator, mean))
        kept = copy.deepcopy(following)
        aggregator.step(following, self.gathered(aggregator, mean_of_clients(2)))
        assert same_values(current, global_state()), "the current model was changed"
        assert same_values(mean, mean_of_clients()), "the mean was changed"
        assert same_values(following, kept), "an earlier model was changed"

    def test_buffers_take_the_mean(self) -> None:
        """Float buffers, which nobody trains, take the mean."""
        for number, state in enumerate(self.play(self.make(), global_state(), range(1, 4)), start=1):
            assert same_values(state["running_mean"], mean_of_clients(number)["running_mean"])

    def test_whole_numbers_stay(self) -> None:
        """Tensors of whole numbers, which no mean holds, stay as they are."""
        for state in self.play(self.make(), global_state(), range(1, 4)):
            assert same_values(state["num_batches_tracked"], global_state()["num_batches_tracked"])

    def test_what_the_clients_do_not_send_stays(self) -> None:
        """What the mean lacks stays as it is, round after round."""
        aggregator, state = self.make(), global_state()
        for number in range(1, 4):
            mean = mean_of_clients(number)
            del mean["bias"], mean["running_mean"]
            state = aggregator.step(state, self.gathered(aggregator, mean))
        for name in ("bias", "running_mean"):
            assert same_values(state[name], global_state()[name]), name

    def test_tied_weights_stay_alike(self) -> None:
        """Two names of one weight, whose means are alike, stay alike."""
        for state in self.play(self.make(), global_state(), range(1, 4)):
            assert same_values(state["weight"], state["tied"])

    def test_moves_towards_the_mean(self) -> None:
        """The first step goes from the current weights towards the mean, not away from it."""
        current, mean = global_state(), mean_of_clients()
        aggregator = self.make()
        moved = aggregator.step(current, self.gathered(aggregator, mean))["weight"] - current["weight"]
        assert (moved * (mean["weight"] - current["weight"])).sum().item() > 0

    def test_the_order_of_names_decides_nothing(self) -> None:
        """The order in which the mean names its tensors decides no bit."""
        forward, backward = self.make(), self.make()
        one = other = global_state()
        for number in range(1, 4):
            mean = mean_of_clients(number)
            one = forward.step(one, self.gathered(forward, mean))
            other = backward.step(other, self.gathered(backward, dict(reversed(mean.items()))))
            assert same_values(one, other)

    def test_global_random_numbers_decide_nothing(self) -> None:
        """Every process takes the same step: global random numbers decide nothing and are left as they were."""
        states = []
        for seed in (1, 2):
            with seeded(seed):
                before = generator_states()
                states.append(self.play(self.make(), global_state(), range(1, 4)))
                assert same_values(generator_states(), before), "global random numbers were drawn"
        assert same_values(*states)

    def test_state_holds_tensors_and_plain_values(self) -> None:
        """`state_dict` holds tensors and plain values, before the first step and after."""
        aggregator = self.make()
        assert not_plain(aggregator.state_dict(), holds_tensors=True) is None
        self.play(aggregator, global_state(), range(1, 4))
        assert not_plain(aggregator.state_dict(), holds_tensors=True) is None

    def test_goes_on_from_a_checkpoint(self) -> None:
        """After a resume, at whatever round, models and state are those of the unbroken run to the last bit."""
        for done in (0, 1, 3):
            unbroken, resumed = self.make(), self.make()
            state = [global_state(), *self.play(unbroken, global_state(), range(1, done + 1))][-1]
            resumed.load_state_dict(through_checkpoint(unbroken.state_dict()))
            later = [self.play(each, copy.deepcopy(state), range(done + 1, 7)) for each in (unbroken, resumed)]
            assert same_values(*later), f"resumed after round {done}"
            assert same_values(unbroken.state_dict(), resumed.state_dict()), f"resumed after round {done}"

    def test_nothing_to_load_starts_afresh(self) -> None:
        """`load_state_dict({})`, the start of a run, forgets the steps before it."""
        aggregator = self.make()
        first = self.play(aggregator, global_state(), range(1, 4))
        aggregator.load_state_dict({})
        assert same_values(self.play(aggregator, global_state(), range(1, 4)), first)

    def test_the_clients_term_leaves_the_weights_alone(self) -> None:
        """`client_term` and the term's steps change gradients only, never weights, and neither does its end."""
        module = _trained_module()
        before = copy.deepcopy(module.state_dict())
        term = self.begun(self.make(), module)
        assert same_values(module.state_dict(), before)
        if term is not None:
            module(torch.ones(1, 3)).sum().backward()
            term.before_step(torch.optim.SGD(module.parameters(), lr=0.1))
            term.finish(1)
            assert same_values(module.state_dict(), before)

    def test_the_clients_term_takes_frozen_weights(self) -> None:
        """Parameters without a gradient, such as frozen ones, are passed over."""
        module = _trained_module()
        module.bias.requires_grad_(False)
        term = self.begun(self.make(), module)
        if term is not None:
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            term.before_step(optimizer)
            assert all(parameter.grad is None for parameter in module.parameters())
            module(torch.ones(1, 3)).sum().backward()
            term.before_step(optimizer)
            assert module.bias.grad is None

    def test_clients_send_beside_the_model_what_was_said(self) -> None:
        """A term sends float32 tensors with the names and shapes of `beside_up`, and keeps something only if it may."""
        module, aggregator = _trained_module(), self.make()
        parameters = {name: value.detach().clone() for name, value in module.named_parameters()}
        said = {name: (value.shape, torch.float32) for name, value in aggregator.beside_up(parameters).items()}
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        kept: StateDict = {}
        for _ in range(2):
            term = aggregator.client_term(ClientStart(module, aggregator.beside_down(parameters), kept))
            module(torch.ones(1, 3)).sum().backward()
            if term is not None:
                term.before_step(optimizer)
            optimizer.step()
            end = ClientEnd() if term is None else term.finish(1)
            assert {name: (value.shape, value.dtype) for name, value in end.beside.items()} == said
            assert aggregator.has_client_state or not end.kept, "has_client_state is False, so nothing is kept"
            kept = end.kept


def _trained_module() -> nn.Linear:
    """A module whose weights do not depend on torch's global random numbers."""
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1.0, 1.0, parameter.numel()).view_as(parameter))
    return module
