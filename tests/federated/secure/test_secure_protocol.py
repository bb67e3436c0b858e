"""The protocol: the server finds the sum of the inputs that came, whoever drops out where, and refuses the rest."""

import itertools

import numpy as np
import pytest

from fedhq_lightning.federated.secure.masking_client import MaskingClient
from fedhq_lightning.federated.secure.messages import BelowThresholdError, Kind, ProtocolError, RoundTerms, write
from fedhq_lightning.federated.secure.unmasking_server import UnmaskingServer

from .protocol import Conversation, clients_of, inputs_of, terms

STEPS = (Kind.KEYS, Kind.SHARES, Kind.INPUT, Kind.REVEALED)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_unmasked_sum_is_the_plain_sum(bits: int) -> None:
    agreed = terms(num_values=100_001, bits=bits)
    inputs = inputs_of(agreed)
    assert np.array_equal(Conversation(agreed).run(inputs), np.sum(inputs, axis=0, dtype=inputs[0].dtype))


@pytest.mark.parametrize("places", list(itertools.product(STEPS, STEPS)))
def test_two_dropouts_at_any_steps(places: tuple[Kind, Kind]) -> None:
    agreed = terms()
    missing: dict[Kind, set[int]] = {}
    for place, step in enumerate(places):
        missing.setdefault(step, set()).add(3 * place)  # 0 and 3: the first one, and one amid the others
    inputs = inputs_of(agreed)
    counted = [each for each in range(5) if not any(each in missing.get(step, ()) for step in STEPS[:3])]
    found = Conversation(agreed, missing).run(inputs)
    assert np.array_equal(found, np.sum([inputs[each] for each in counted], axis=0, dtype=np.uint64))


@pytest.mark.parametrize("step", STEPS)
def test_below_the_threshold_a_round_ends_by_name(step: Kind) -> None:
    agreed = terms()
    with pytest.raises(BelowThresholdError, match=f"2 of 5 clients are left after {step.name.lower()}, and .* needs 3"):
        Conversation(agreed, {step: (0, 1, 4)}).run(inputs_of(agreed))


def test_the_sum_does_not_depend_on_randomness() -> None:
    agreed = terms()
    one, other = Conversation(agreed, seed=1), Conversation(agreed, seed=2)
    assert np.array_equal(one.run(inputs_of(agreed)), other.run(inputs_of(agreed)))
    assert all(one.sent[step][0] != other.sent[step][0] for step in STEPS)


def test_by_default_secrets_come_from_the_system() -> None:
    agreed = terms()
    assert MaskingClient(agreed, 0).advertise() != MaskingClient(agreed, 0).advertise()


def test_the_server_may_be_spread_over_processes() -> None:
    agreed, talk = terms(), Conversation(terms())
    inputs, inboxes = inputs_of(agreed), talk.share()
    other = UnmaskingServer(agreed)
    for message in talk.sent[Kind.KEYS].values():
        other.receive_keys(message)
    assert other.roster()
    for message in talk.sent[Kind.SHARES].values():
        other.receive_shares(message)
    assert other.inboxes() == inboxes
    for place, client in talk.clients.items():
        (other if place % 2 else talk.server).receive_input(client.mask(inboxes[place], inputs[place]))
    here, there = talk.server.arrived, other.arrived
    survivors = talk.server.survivors(there)
    assert other.survivors(here) == survivors
    for client in talk.clients.values():
        message = client.reveal(survivors)
        talk.server.receive_revealed(message)
        other.receive_revealed(message)
    assert talk.server.masks() == other.masks()


def test_messages_of_another_round_or_run_are_refused() -> None:
    agreed = terms()
    for other in (terms(number=2), terms(threshold=4), RoundTerms("another", 1, agreed.cohort, 3, 7)):
        with pytest.raises(ProtocolError, match="of another round than 1, or on other terms"):
            UnmaskingServer(agreed).receive_keys(clients_of(other)[0].advertise())


def test_a_client_answers_in_order_and_once() -> None:
    agreed = terms()
    client = clients_of(agreed)[0]
    with pytest.raises(ProtocolError, match="asked for shares when keys are due"):
        client.share_keys(b"")
    talk = Conversation(agreed)
    talk.run(inputs_of(agreed))
    survivors = write(Kind.SURVIVORS, agreed, 2**32 - 1, dict.fromkeys(range(1, 5), b""))
    with pytest.raises(ProtocolError, match="asked for revealed when roster are due"):
        talk.clients[0].reveal(survivors)


def test_a_client_reveals_nothing_on_lists_that_cannot_be() -> None:
    agreed, talk = terms(), Conversation(terms(), {Kind.SHARES: [4]})
    inboxes = talk.share()
    for place, client in talk.clients.items():
        client.mask(inboxes[place], inputs_of(agreed)[place])
    for places, words in (((0, 1, 4), "has not shared its keys"), ((2, 3), "2 of 5 clients are left")):
        survivors = write(Kind.SURVIVORS, agreed, 2**32 - 1, dict.fromkeys(places, b""))
        with pytest.raises(ProtocolError, match=words):
            talk.clients[places[0]].reveal(survivors)


def test_rosters_that_no_client_trusts() -> None:
    agreed = terms()
    keys = {place: client.advertise()[-64:] for place, client in enumerate(clients_of(agreed))}
    rosters = {
        "without this client's own keys": keys | {0: bytes(range(64))},
        "a public key occurs twice": keys | {2: keys[1]},
        "2 of 5 clients are left": {0: keys[0], 1: keys[1]},
    }
    for words, rows in rosters.items():
        client = clients_of(agreed)[0]
        client.advertise()
        with pytest.raises(ProtocolError, match=words):
            client.share_keys(write(Kind.ROSTER, agreed, 2**32 - 1, rows))


def test_a_damaged_share_is_found() -> None:
    agreed, talk = terms(), Conversation(terms())
    inboxes = talk.share()
    damaged = bytearray(inboxes[0])
    damaged[-1] ^= 1
    inboxes[0] = bytes(damaged)
    for place, client in talk.clients.items():
        talk.server.receive_input(client.mask(inboxes[place], inputs_of(agreed)[place]))
    survivors = talk.server.survivors()
    with pytest.raises(ProtocolError, match="not sealed for this client and round"):
        talk.clients[0].reveal(survivors)


def test_clients_who_were_told_different_rosters_share_nothing() -> None:
    agreed = terms()
    clients, server = clients_of(agreed), UnmaskingServer(agreed)
    keys = {place: client.advertise()[-64:] for place, client in enumerate(clients)}
    whole = write(Kind.ROSTER, agreed, 2**32 - 1, keys)
    other = write(Kind.ROSTER, agreed, 2**32 - 1, dict(list(keys.items())[:4]))
    for place, rows in keys.items():
        server.receive_keys(write(Kind.KEYS, agreed, place, {place: rows}))
    server.roster()
    shares = [client.share_keys(whole) for client in clients[1:]]
    told_another = clients[0].share_keys(other)
    for message in shares:
        server.receive_shares(message)
    with pytest.raises(ProtocolError, match="shares for others than those on the roster"):
        server.receive_shares(told_another)


def test_shares_that_give_another_key_are_found() -> None:
    agreed, talk = terms(), Conversation(terms(), {Kind.INPUT: [4]})
    inboxes = talk.share()
    for place in range(4):
        talk.server.receive_input(talk.clients[place].mask(inboxes[place], inputs_of(agreed)[place]))
    survivors = talk.server.survivors()
    for place in range(4):
        message = bytearray(talk.clients[place].reveal(survivors))
        if place == 1:
            message[-20] ^= 1  # in the last row, of client 4
        talk.server.receive_revealed(bytes(message))
    with pytest.raises(ProtocolError, match="client 4: the shares of its key are not those of the key that it adv"):
        talk.server.masks()


@pytest.mark.parametrize(("size", "threshold"), [(5, 2), (4, 2), (5, 6), (2, 2), (0, 0)])
def test_terms_that_cannot_be(size: int, threshold: int) -> None:
    with pytest.raises(ProtocolError, match=r"above half of|hides what each adds|needs 6"):
        terms(size, threshold)


def test_messages_in_pieces_are_refused() -> None:
    agreed = terms()
    message = clients_of(agreed)[0].advertise()
    for given in (b"", message[:20], message[:-1], message + b"\0", b"X" + message[1:]):
        with pytest.raises(ProtocolError):
            UnmaskingServer(agreed).receive_keys(given)


def test_a_second_message_and_a_late_one_are_refused() -> None:
    talk = Conversation(terms())
    message = talk.clients[0].advertise()
    talk.server.receive_keys(message)
    with pytest.raises(ProtocolError, match="client 0 has sent its keys before"):
        talk.server.receive_keys(message)
    late = talk.clients.pop(4).advertise()
    for place in (1, 2, 3):
        talk.server.receive_keys(talk.clients[place].advertise())
    talk.server.roster()
    with pytest.raises(ProtocolError, match="keys of client 4 when shares are due"):
        talk.server.receive_keys(late)
