import json

from fedhq_lightning.cli.own_code import told_from_own_lines
from fedhq_lightning.quantize import QuantScheme


def raised(function, *arguments) -> Exception:
    try:
        function(*arguments)
    except Exception as error:
        return error.with_traceback(error.__traceback__.tb_next)  # without this file's line
    raise AssertionError("nothing was raised")


def test_a_failure_in_libraries_alone_is_not_the_users():
    assert told_from_own_lines(raised(json.loads, "{")) is None
    assert told_from_own_lines(raised(QuantScheme.parse, "w9a8")) is None
    assert told_from_own_lines(raised(eval, "1 / 0")) is None


def test_lines_of_libraries_are_left_out():
    def own(text):
        return json.loads(text)

    error = raised(own, "{")
    error.add_note("in round 3")
    told = told_from_own_lines(error).splitlines()
    assert told[0].startswith(f'  File "{__file__}", line ')
    assert told[0].endswith(", in own")
    assert told[1:-2] == ["    return json.loads(text)", "           ^^^^^^^^^^^^^^^^"]
    assert told[-2].startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert told[-1] == "in round 3"
