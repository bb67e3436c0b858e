"""One client's deployed model."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.finish.exported_models import _known
from fedhq_lightning.run.client_store import PERSONAL
from fedhq_lightning.run.directory import RunDirectory

from ..federated.test_evaluation_round import HoldingBack
from ..small_federation import SmallModule
from ..trainer.runs import checkpoint, fit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {"personal_layers": "net.2", "scheme": "w4a8", "max_rounds": 2, "clients_per_round": 2}
    return fit(None, HoldingBack(), default_root_dir=tmp_path_factory.mktemp("runs"), **settings)[0]


def test_has_the_global_body_and_its_own_head_on_the_grid(run: Any) -> None:
    state, store = checkpoint(run)["state"], RunDirectory(run.run_dir).client_store
    (client, *_) = sorted(int(each.name) for each in run.run_dir.glob("client_state/*"))
    folder = run.export_client(client)
    assert folder == run.run_dir / "clients" / str(client)
    written = load_file(folder / "weights.safetensors")
    own = store.load(client, state["best_round"] + 1)[PERSONAL]
    for name in SmallModule().state_dict():
        assert torch.equal(written[name], own.get(name, state["best_state"][name]))
    program = torch.export.load(folder / "model.pt2").module()
    assert program(torch.randn(5, 12)).shape == (5, 3)


@pytest.mark.parametrize(
    ("client", "message"), [(17, "no such client, of 4"), ("never", "it has nothing of its own by round")]
)
def test_what_is_not_there_is_refused(run: Any, client: Any, message: str) -> None:
    if client == "never":
        took_part = {each.name for each in run.run_dir.glob("client_state/*")}
        client = next((each for each in "0123" if each not in took_part), None)
        if client is None:
            pytest.skip("all took part")
    with pytest.raises(ConfigurationError, match=message):
        run.export_client(client)


def test_a_client_of_a_billion_is_found_by_its_number() -> None:
    ids = range(10**9)
    assert _known("999999999", ids) == _known(999_999_999, ids) == 999_999_999
    for other in ("1000000000", "-1", "first"):
        with pytest.raises(ConfigurationError, match=r"no such client, of 1000000000$"):
            _known(other, ids)
