import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.data import BreastCancerHospitals, CSVDataModule, TableForm
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.testing import DataModuleContract
from fedhq_lightning.testing.same_values import same_values

NORTH = "age,size,ill\n" + "".join(
    f"{20 + i},{'small' if i % 3 else 'large'},{'yes' if i % 2 else 'no'}\n" for i in range(12)
)
SOUTH = "ill,size,age\n" + "".join(f"no,{'' if i == 2 else 'medium'},{'NA' if i == 3 else 50 + i}\n" for i in range(7))


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.csv").write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "hospitals", north=NORTH, south=SOUTH, closed="", new="age,size,ill\n")


def ready(path: Path, label: str = "ill", **settings: Any) -> CSVDataModule:
    module = CSVDataModule(path, label, **settings)
    module.setup("fit")
    return module


def rows(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = zip(*loader, strict=True)
    return torch.cat(features), torch.cat(labels)


def everything(module: CSVDataModule) -> list[Any]:
    """All that a run sees of a data module."""
    training = [module.train_dataloader(each).dataset.tensors for each in module.client_ids]  # type: ignore[attr-defined]
    held_out = [rows(module.val_dataloader()), rows(module.test_dataloader())]
    return [list(module.client_ids), training, held_out, module.model_inputs()]


class TestFolder(DataModuleContract):
    @pytest.fixture(autouse=True)
    def _used(self, folder: Path) -> None:
        self._folder = folder

    def make(self) -> CSVDataModule:
        return CSVDataModule(self._folder, "ill", batch_size=4)


class TestOneFile(DataModuleContract):
    @pytest.fixture(autouse=True)
    def _used(self, tmp_path: Path) -> None:
        lines = [f"{i % 3},{i},{i * i % 2}\n" for i in range(40)]
        (tmp_path / "all.csv").write_text("ward,x,y\n" + "".join(lines))
        self._file = tmp_path / "all.csv"

    def make(self) -> CSVDataModule:
        return CSVDataModule(self._file, "y", client="ward", batch_size=4)


class TestHospitals(DataModuleContract):
    make = BreastCancerHospitals


class TestRows:
    def test_features_are_raw_and_in_the_order_of_the_first_file(self, folder: Path) -> None:
        (folder / "south.csv").rename(folder / "east.csv")
        module = ready(folder, hold_out_every=8)
        assert [column.name for column in module.form.columns] == ["size", "age"]
        features, labels = module.train_dataloader("east").dataset.tensors  # type: ignore[attr-defined]
        assert features[:2].tolist() == [[1.0, 50.0], [1.0, 51.0]]
        assert features.isnan().nonzero().tolist() == [[2, 0], [3, 1]]
        assert labels.tolist() == [0] * 7

    def test_a_category_that_no_client_trains_on_is_missing(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "server.csv"
        file.write_text("age,size,ill\n30,huge,no\n31,3,no\n32,small,yes\n")
        module = ready(folder, held_out_file=file)
        features, labels = rows(module.val_dataloader())
        assert features[:, 1].isnan().tolist() == [True, False]
        assert labels.tolist() == [0, 1]
        assert rows(module.test_dataloader())[0][:, 1].isnan().all()

    def test_a_client_without_rows_is_one_without_examples(self, folder: Path) -> None:
        module = ready(folder)
        assert list(module.client_ids) == ["closed", "new", "north", "south"]
        assert [module.num_examples(each) for each in module.client_ids] == [0, 0, 10, 6]

    def test_a_client_of_one_class_has_counts_of_both(self, folder: Path) -> None:
        assert ready(folder).label_counts("south").tolist() == [6, 0]

    def test_whole_numbers_can_be_categories(self, tmp_path: Path) -> None:
        text = "ward,y\n" + "3,0\n1.0,1\n1,0\n" * 4
        module = ready(write(tmp_path / "a", a=text), "y", categorical=["ward"])
        assert module.model_inputs()["columns"] == [{"name": "ward", "categories": ["1", "3"]}]
        assert module.form.encode([{"ward": 3.0}, {"ward": "3"}, {"ward": 1}, {"ward": 2}])[:3].tolist() == [
            [1.0],
            [1.0],
            [0.0],
        ]

    def test_dropped_columns_are_nowhere(self, folder: Path) -> None:
        module = ready(folder, drop=["size"])
        assert [column.name for column in module.form.columns] == ["age"]

    def test_held_out_rows_are_of_every_class_that_a_client_has_enough_of(self, folder: Path) -> None:
        module = ready(folder)
        labels = torch.cat([rows(module.val_dataloader())[1], rows(module.test_dataloader())[1]])
        assert len(labels) == 3
        assert set(labels.tolist()) == {0, 1}


class TestReproducible:
    def test_neither_the_order_of_files_nor_where_they_lie_changes_a_bit(self, folder: Path, tmp_path: Path) -> None:
        other = tmp_path / "elsewhere"
        other.mkdir()
        for name in ("south", "new", "north", "closed"):
            shutil.copy(folder / f"{name}.csv", other)
        assert same_values(everything(ready(other)), everything(ready(folder)))

    def test_one_file_of_all_is_as_a_file_each(self, tmp_path: Path) -> None:
        lines = [f"{i % 3},{i * 0.1},{'ab'[i % 2]},{i % 5 % 2}\n" for i in range(60)]
        parts = {
            f"w{ward}": "ward,x,z,y\n" + "".join(line for line in lines if line[0] == str(ward)) for ward in range(3)
        }
        single = ready(write(tmp_path / "parts", **parts), "y", drop=["ward"])
        random.Random(0).shuffle(moved := list(range(3)))
        mixed = "".join("".join(line for line in lines if line[0] == str(ward)) for ward in moved)
        (tmp_path / "all.csv").write_text("ward,x,z,y\n" + mixed)
        together = ready(tmp_path / "all.csv", "y", client="ward")
        assert list(together.client_ids) == ["0", "1", "2"]
        assert same_values(everything(together)[1:], everything(single)[1:])

    def test_the_form_of_an_earlier_run_is_taken_as_it_is(self, folder: Path, tmp_path: Path) -> None:
        before = ready(folder)
        file = tmp_path / "inputs.json"
        import json

        file.write_text(json.dumps(before.model_inputs()))
        new = write(tmp_path / "later", west="ill,age,size\n" + "yes,99,small\n" * 5 + "yes,98,none so far\n" * 5)
        module = ready(new, inputs_file=file)
        assert module.form == before.form == TableForm.read(file)
        assert module.label_counts("west").tolist() == [0, 8]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"a": "x,y\n1,0\n2,\n"}, {}, r"a\.csv, line 3, column 'y': no value; give one, or leave the line out"),
        ({"a": "x,y\n1,None\n"}, {}, r"a\.csv, line 2, column 'y': no value \('None' is listed in missing\)"),
        ({"a": "x,z\n1,0\n"}, {}, r"label 'y': a\.csv has no such column; it has x, z"),
        ({"a": "x,y\n1,0\n2,1\n", "b": "z,y\n1,0\n"}, {}, r"b\.csv, line 1: no column 'x', which a\.csv has"),
        ({"a": "x,y\n1,0\n", "b": "x,z,y\n1,2,0\n"}, {}, r"a\.csv, line 1: no column 'z', which b\.csv has"),
        ({"a": "x,y\n1,0\nhigh,1\n"}, {}, r"a\.csv, line 3, column 'x': 'high' is no number, other cells .* missing"),
        ({"a": 'x,y\n1,0\n"1,5",1\n'}, {}, "line 3, column 'x': '1,5' is no number, .*write it with a point"),
        ({"a": "x,y\n1,0\n", "b": "x,y\nhigh,1\n"}, {}, r"b\.csv, line 2, column 'x': 'high' is no number, and a\.csv"),
        ({"a": "x,y\n1,0\ninf,1\n"}, {}, r"a\.csv, line 3, column 'x': 'inf' is no finite number in float32"),
        ({"a": "x,y\n1e39,0\n"}, {}, "'1e39' is no finite number in float32"),
        ({"a": "x,z,y\n,1,0\nNA,2,1\n"}, {}, "column 'x': holds nothing in any file; list it in drop"),
        ({"a": "y\n1\n"}, {}, r"a\.csv: no column but those of label, client and drop"),
        ({"a": "x,y\n" + "1,0\n" * 9}, {}, "label 'y': every row is '0'; there must be two classes"),
        ({"a": "x,y\n1,0\n2,1\n"}, {}, "hold_out_every 5: no client has as many rows"),
        ({"a": "x,y\n"}, {}, "no rows; give files with a header and rows"),
        (
            {"a": "x,y\nann,0\nbob,1\ncy,0\n"},
            {"max_categories": 2},
            "column 'x': 3 different texts, such as 'ann'; list",
        ),
        ({"a": "x,y\n1,0.5\n1,0.7\n1,0.2\n"}, {"max_categories": 2}, "column 'y': 3 .*if it is measured, make a few"),
        ({"a": "x,y\n1,0\n" * 1}, {"categorical": ["z"], "hold_out_every": 2}, "two classes"),
        ({"a": "x,y\n1,0\n2,1\n3,1\n"}, {"categorical": ["z"], "hold_out_every": 2}, "categorical 'z': no such column"),
        ({"a": "x,y\n1,0\n2,1\n"}, {"client": "ward"}, "a folder; with client, give the one file"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, files: dict[str, str], settings: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path / "a", **files)
    with pytest.raises(ConfigurationError, match=message):
        ready(folder, "y", **settings)


class TestRefusals:
    def test_of_the_path(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("x,y\n1,0\n")
        with pytest.raises(ConfigurationError, match="a file; name its column of clients in client"):
            ready(tmp_path / "a.csv", "y")
        with pytest.raises(ConfigurationError, match="no such folder"):
            ready(tmp_path / "b", "y")
        (tmp_path / "c").mkdir()
        with pytest.raises(ConfigurationError, match=r"no file NAME\.csv in it"):
            ready(tmp_path / "c", "y")

    def test_of_the_column_of_clients(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("ward,x,y\n1,1,0\n,1,0\n")
        with pytest.raises(ConfigurationError, match=r"a\.csv, line 3, column 'ward': no value"):
            ready(tmp_path / "a.csv", "y", client="ward")
        with pytest.raises(
            ConfigurationError,
            match=r"client 'Ward': a\.csv has no such column; it has ward, x, y; did you mean 'ward'",
        ):
            ready(tmp_path / "a.csv", "y", client="Ward")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "age,size,ill\n30,small,perhaps\n",
                r"server\.csv, line 2, column 'ill': 'perhaps' is a class that no client",
            ),
            ("age,size,ill\n30,small,no\nold,small,no\n", "line 3, column 'age': 'old' is no number"),
            ("age,size,ill\nold,small,no\n", "line 2, column 'age': 'old' is no number, and the model takes numbers"),
            ("age,ill\n30,no\n", r"server\.csv, line 1: no column 'size', which the model takes"),
        ],
    )
    def test_of_held_out_rows(self, folder: Path, tmp_path: Path, text: str, message: str) -> None:
        file = tmp_path / "server.csv"
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            ready(folder, held_out_file=file)

    @pytest.mark.parametrize("name", ["batch_size", "hold_out_every", "max_categories"])
    def test_of_settings(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{name} 0: must be"):
            CSVDataModule(tmp_path, "y", **{name: 0})  # type: ignore[arg-type]  # all three are whole numbers
        with pytest.raises(ConfigurationError, match="delimiter ';;': must be one character"):
            CSVDataModule(tmp_path, "y", delimiter=";;")


class TestEncodedByHand:
    def test_rows_are_as_those_of_batches(self, folder: Path) -> None:
        form = ready(folder).form
        encoded = form.encode([{"age": "33", "size": "small", "name": "x"}, {"age": None, "size": "huge"}])
        assert encoded[0].tolist() == [33.0, 2.0]
        assert encoded[1].isnan().all()

    def test_written_hospitals_are_the_same_hospitals(self, tmp_path: Path) -> None:
        BreastCancerHospitals(3).write(tmp_path / "hospitals")
        assert same_values(
            everything(ready(tmp_path / "hospitals", "diagnosis", batch_size=16)),
            everything(BreastCancerHospitals(3)),
        )
