"""What the server and those who help it can learn: masked inputs look like noise until all that is honest is summed."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, chisquare

from fedhq_lightning.federated.secure.keys import Mask, apply_masks
from fedhq_lightning.federated.secure.messages import Kind
from fedhq_lightning.federated.secure.roster import Roster
from fedhq_lightning.federated.secure.shamir import NUM_SHARE_BYTES, Recovery

from .protocol import Conversation, terms

NUM_VALUES = 50_000
P_VALUE = 1e-3
"""Draws are seeded, so a test that passes does so always."""


def bytes_of(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.bincount(np.frombuffer(values.tobytes(), np.uint8), minlength=256)


def is_noise(values: NDArray[np.uint64]) -> bool:
    bits = np.unpackbits(np.frombuffer(values.tobytes(), np.uint8)).mean()
    return bool(chisquare(bytes_of(values)).pvalue > P_VALUE) and abs(bits - 0.5) < 3 / np.sqrt(64 * len(values))


def inputs(size: int = 5) -> list[NDArray[np.uint64]]:
    """As far from noise as can be: zeros, ones, and small numbers of both signs."""
    ramp = np.arange(NUM_VALUES, dtype=np.int64).view(np.uint64)
    return [np.zeros_like(ramp), np.ones_like(ramp), ramp, (-ramp.view(np.int64)).view(np.uint64), ramp // 1000][:size]


@pytest.fixture(scope="module")
def talk() -> Conversation:
    conversation = Conversation(terms(num_values=NUM_VALUES))
    conversation.run(inputs())
    return conversation


def sent(talk: Conversation, place: int) -> NDArray[np.uint64]:
    return np.frombuffer(talk.sent[Kind.INPUT][place][-8 * NUM_VALUES :], np.uint64)


def test_the_measure_tells_inputs_from_noise() -> None:
    assert not any(is_noise(each) for each in inputs())
    assert is_noise(np.random.default_rng(0).integers(0, 2**64 - 1, NUM_VALUES, np.uint64, endpoint=True))


def test_masked_inputs_are_noise_alike(talk: Conversation) -> None:
    masked = [sent(talk, place) for place in range(5)]
    assert all(map(is_noise, masked))
    assert chi2_contingency([bytes_of(each) for each in masked]).pvalue > P_VALUE


def test_even_their_sum_is_noise_until_clients_reveal(talk: Conversation) -> None:
    for count in (2, 3, 4, 5):
        assert is_noise(np.sum([sent(talk, place) for place in range(count)], axis=0, dtype=np.uint64))


def test_fewer_clients_than_the_threshold_and_the_server_find_the_others_sum_alone(talk: Conversation) -> None:
    """Clients 0 and 1 tell the server all that they have: what 2, 3 and 4 sent stays noise, each and in twos."""
    roster = Roster(talk.server.roster_message, talk.agreed)
    rest = {}
    for honest in (2, 3, 4):
        left = sent(talk, honest).copy()
        # The self-masks, as the server finds them of whoever stayed; and the masks that it shares with 0 and 1.
        masks = [Mask(_self_mask(talk, honest), False)]
        for helper in (0, 1):
            masks.append(roster.pair_mask(talk.clients[helper]._masking, helper, honest))
        apply_masks(left, masks)
        rest[honest] = left
    for places in ((2,), (3,), (4,), (2, 3), (2, 4), (3, 4)):
        assert is_noise(np.sum([rest[place] for place in places], axis=0, dtype=np.uint64)), places
    everything = np.sum(list(rest.values()), axis=0, dtype=np.uint64)
    assert np.array_equal(everything, np.sum(inputs()[2:], axis=0, dtype=np.uint64))


def test_a_client_reveals_one_of_two_secrets_of_each() -> None:
    talk = Conversation(terms(num_values=2), {Kind.INPUT: [4]})
    talk.run([each[:2] for each in inputs()])
    keys = [talk.clients[place] for place in range(4)]
    for client in keys:
        message = talk.sent[Kind.REVEALED][client._place]
        held = {place: client._shares_of(place) for place in range(5)}
        for place, shares in held.items():
            of_key, of_mask = shares[:NUM_SHARE_BYTES], shares[NUM_SHARE_BYTES:]
            assert (of_key in message, of_mask in message) == ((True, False) if place == 4 else (False, True))


def test_keys_differ_from_round_to_round_run_to_run_and_pair_to_pair() -> None:
    """The same private keys in another round, run or cohort agree on other masks."""
    found = set()
    for agreed in (terms(), terms(number=2), terms(size=4), terms(threshold=4)):
        talk = Conversation(agreed)
        talk.share()
        roster = Roster(talk.server.roster_message, agreed)
        for place in range(4):
            for other in range(place):
                mask = roster.pair_mask(talk.clients[place]._masking, place, other)
                assert mask.key == roster.pair_mask(talk.clients[other]._masking, other, place).key
                found.add(mask.key)
    assert len(found) == 4 * 6


def _self_mask(talk: Conversation, place: int) -> bytes:
    shares = {each + 1: talk.clients[each]._shares_of(place)[NUM_SHARE_BYTES:] for each in range(3)}
    return Recovery((1, 2, 3)).secret(shares)
