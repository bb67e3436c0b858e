"""FedBuff and FedAsync against their papers, as an event loop in float64; and what becomes of time and records."""

from typing import Any

import pytest

from fedhq_lightning.callbacks import FixedAllocator, HybridAllocator, LateQatAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedAsync, FedAvg, FedBuff
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy
from fedhq_lightning.run.records import RoundRecord

from ...small_federation import SmallData, SmallModule, same_bits, trainer
from ...trainer.runs import fit, records
from ..algorithms.plain_rounds import Weights, batches, check_is, initial_weights, mean, plus

RATE, EPOCHS, ROUNDS = 0.1, 2, 6


def seconds_of(rounds: list[RoundRecord]) -> dict[int, float]:
    """How long each client takes, which depends on its device and examples alone."""
    return {int(each.client_id): each.virtual_seconds for record in rounds for each in record.clients}


def by_the_paper(aggregator: AsynchronousAggregator, data: SmallData, seconds: dict[int, float]) -> tuple[Weights, Any]:
    """Everybody trains at once: who has come begins anew. The model, and who came in which round, how old."""
    x, now, flying, came = initial_weights(), 0.0, {}, []
    for number in range(1, ROUNDS + 1):
        for client in data.client_ids:
            if client not in flying:
                y = x
                for gradients in batches(data, 0, number, client, EPOCHS):
                    y = plus(y, gradients(y), -RATE)
                flying[client] = now + seconds[client], number, x, y
        first = sorted(flying, key=lambda client: flying[client][0])[: aggregator.buffer_size]
        examples = sum(data.sizes[client] for client in first)
        changes = []
        for client in first:
            now, begun, start, end = flying.pop(client)
            s = (1 + number - begun) ** -0.5
            base = start if isinstance(aggregator, FedBuff) else x
            changes.append(plus([s * each for each in end], base, -s))
            came.append((number, client, number - begun))
        share = aggregator.server_lr if isinstance(aggregator, FedBuff) else aggregator.mixing
        x = plus(x, mean(changes, [data.sizes[client] / examples for client in first]), share)
    return x, came


@pytest.mark.parametrize(
    "aggregator",
    [FedBuff(1), FedBuff(2, 0.5), FedBuff(3), FedAsync(0.6)],
    ids=["FedBuff(1)", "FedBuff(2, 0.5)", "FedBuff(3)", "FedAsync"],
)
def test_is_the_papers(aggregator: AsynchronousAggregator) -> None:
    module, data = SmallModule(lr=RATE, momentum=0.0), SmallData()
    done, state = fit(module, data, aggregator=aggregator, fleet="mixed", max_rounds=ROUNDS, local_epochs=EPOCHS)
    slow, _ = fit(module, data, fleet="mixed", max_rounds=1, local_epochs=EPOCHS)
    wanted, came = by_the_paper(aggregator, data, seconds_of(records(slow)))
    clients = [each for record in records(done) for each in record.clients]
    assert sorted((each.round, each.client_id, each.staleness) for each in clients) == sorted(came)
    assert any(each.staleness for each in clients)
    check_is(module, state, wanted)


def test_a_buffer_for_all_is_fedavg() -> None:
    settings = {"scheme": "w8a8", "clients_per_round": 3, "max_rounds": 3, "callbacks": FixedAllocator(0.5)}
    runs = [fit(aggregator=each, **settings) for each in (FedBuff(3), FedAvg())]
    assert same_bits(runs[0][1], runs[1][1])
    assert records(runs[0][0])[-1].total_virtual_seconds == pytest.approx(records(runs[1][0])[-1].total_virtual_seconds)


def test_no_round_waits_for_the_slowest() -> None:
    waiting, buffered = (
        records(fit(aggregator=each, fleet="mixed", max_rounds=5)[0])[1:] for each in (FedAvg(), FedBuff(2))
    )
    assert buffered[-1].total_virtual_seconds < 0.8 * waiting[-1].total_virtual_seconds
    assert [len(record.clients) for record in buffered] == [2] * 5
    assert all(record.usable == 2 for record in buffered)


def test_as_many_train_at_once_as_was_said() -> None:
    begun: list[int] = []

    class Counts(FixedAllocator):
        def propose(self, round_number: int, cohort: Any) -> Any:
            begun.append(len(cohort))
            return super().propose(round_number, cohort)

    settings = {"max_rounds": 4, "clients_per_round": 5, "fleet": "mixed"}
    fit(data=SmallData([8] * 20), aggregator=FedBuff(2), callbacks=Counts("fp"), **settings)
    assert begun == [5, 2, 2, 2]


def test_the_hybrid_allocator_gives_nobody_more_time_than_its_own_in_ptq() -> None:
    def times(allocator: Any) -> dict[tuple[Any, str], float]:
        settings = {"aggregator": FedBuff(1), "scheme": "w4a8", "fleet": "mixed", "max_rounds": 8, "local_epochs": 4}
        done, _ = fit(data=SmallData([40] * 4), callbacks=allocator, **settings)
        clients = [each for record in records(done) for each in record.clients]
        return {(each.client_id, each.mode): each.virtual_seconds for each in clients}

    ptq, hybrid = times(FixedAllocator("ptq")), times(HybridAllocator(fine=False, qat_from=0.0, least_work=0.1))
    common = [
        (ptq[client, "ptq"], seconds)
        for (client, mode), seconds in hybrid.items()
        if mode == "qat" and (client, "ptq") in ptq
    ]
    assert common
    assert all(seconds <= own for own, seconds in common)


def test_clients_whose_code_fails_free_their_place() -> None:
    class Breaks(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) == 5:
                raise ValueError("it broke")
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="client 1"):
        done, _ = fit(Breaks(), SmallData([8, 5, 8]), aggregator=FedBuff(1), max_rounds=3)
    assert [record.usable for record in records(done)[1:]] == [1, 1, 1]
    assert any(record.quarantined for record in records(done)[1:])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aggregator": FedBuff(5)}, "FedBuff buffer_size 5: 4 clients train at once"),
        ({"aggregator": FedBuff(2), "min_clients": 3}, "min_clients 3: a step of FedBuff takes 2"),
        ({"aggregator": FedBuff(2), "uplink": "weights"}, "FedBuff and uplink: weights cannot be together"),
        ({"aggregator": FedAsync(), "scheme": "w4a8"}, "FedAsync and uplink: delta on a grid cannot be together"),
        ({"aggregator": FedBuff(2), "round_deadline": 1.0}, "round_deadline cannot be together: nobody is late"),
        (
            {"aggregator": FedAsync(), "privacy": CentralPrivacy(1.0, 1.0, 0.01)},
            "no round waits and privacy cannot be together",
        ),
        (
            {"aggregator": FedBuff(2), "scheme": "w4a8", "callbacks": LateQatAllocator()},
            "FedBuff and LateQatAllocator cannot be together",
        ),
    ],
)
def test_refuses_what_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        trainer(**settings).fit(SmallModule(), SmallData())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FedBuff(0), "FedBuff buffer_size 0: must be a whole number"),
        (lambda: FedBuff(server_lr=0.0), "share of a change is 0.0, and must be above 0"),
        (lambda: FedAsync(mixing=-1.0), "share of a change is -1.0, and must be above 0"),
        (lambda: FedAsync(staleness_exponent=-1.0), "staleness_exponent -1.0: must be 0 or more"),
    ],
)
def test_refuses_values_out_of_range(make: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()
