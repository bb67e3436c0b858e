import pytest

from fedhq_lightning.data.csv_text import parse_csv
from fedhq_lightning.errors import ConfigurationError


class TestParsing:
    def test_cells_are_stripped_and_lines_told(self) -> None:
        table = parse_csv("a.csv", b"age , size\r\n 1, small\r\n\r\n2,large \r\n")
        assert table.header == ("age", "size")
        assert table.rows == [["1", "small"], ["2", "large"]]
        assert table.lines == [2, 4]

    def test_a_quoted_cell_may_hold_delimiters_and_line_ends(self) -> None:
        table = parse_csv("a.csv", b'age,note\n1,"so, so\nand so"\n2,x\n')
        assert table.rows == [["1", "so, so\nand so"], ["2", "x"]]
        assert table.lines == [3, 4]

    def test_other_delimiters_and_encodings(self) -> None:
        table = parse_csv("a.csv", "größe;Ort\n1;Köln\n".encode("latin-1"), "latin-1", ";")
        assert (table.header, table.rows) == (("größe", "Ort"), [["1", "Köln"]])

    def test_the_mark_that_excel_writes_is_no_part_of_the_first_name(self) -> None:
        assert parse_csv("a.csv", b"\xef\xbb\xbfage,size\n1,2\n").header == ("age", "size")

    @pytest.mark.parametrize("content", [b"", b"\n\n"])
    def test_an_empty_file_has_no_columns(self, content: bytes) -> None:
        table = parse_csv("a.csv", content)
        assert (table.header, table.rows) == ((), [])


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"a,b\n1,2\n1\n", {}, r"a\.csv, line 3: 1 cells, where the header has 2"),
        (b"a,b\n1,2,3\n", {}, r"line 2: 3 cells, .*put a cell that holds ',' into double quotes"),
        (b"a,b\n1,2\nK\xf6ln,3\n", {}, r"a\.csv, line 3: byte 0xf6 is no utf-8; .* perhaps latin-1 or cp1252"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "line 1: byte 0xff is no utf-8; .* perhaps utf-16"),
        (b"a,b\n1,2\n", {"encoding": "utf-9"}, "encoding 'utf-9': Python knows none of that name"),
        (b"a;b\n1;2\n", {}, "line 1: one column, 'a;b', found with delimiter ','; set delimiter to ';'"),
        (b"a,b,a\n1,2,3\n", {}, "line 1: column 'a' is there 2 times"),
        (b'a,b\n1,"2\n', {}, r"a\.csv, line 2: no CSV"),
    ],
)
def test_what_cannot_be_read_is_refused_by_file_and_line(
    content: bytes, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_csv("a.csv", content, **settings)
