"""Traces from CSV and YAML, checked row by row; the format is in `fedhq_lightning.devices.trace`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from fedhq_lightning.devices.device_profile import MOST_DEVICES, DeviceProfile, device_file, load_profile
from fedhq_lightning.devices.trace import Availability, Trace
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.untrusted_files import read_text

COLUMNS = (
    "client",
    "device",
    "uplink_mbit_per_second",
    "downlink_mbit_per_second",
    "available_from_seconds",
    "available_until_seconds",
)
"""Of a row, in CSV and in YAML."""

MOST_BYTES = 2**28
"""Of a CSV file: two windows for each of two million clients."""
_PERIOD = "period_seconds"
_FROM_DEVICE, _WINDOW = COLUMNS[1:4], COLUMNS[4:]

_Row: TypeAlias = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and its cells by column; empty ones are left out."""


@dataclass
class _Client:
    where: str
    cells: dict[str, Any]
    windows: list[tuple[float, float, str]] = field(default_factory=list)
    always: str | None = None


def read_csv_trace(path: Path) -> Trace:
    """Read a trace from CSV; empty lines and lines that begin with `#` do not count.

    Raises:
        ConfigurationError: It cannot be read, or cannot be a trace.
    """
    fleet = f"fleet {path.stem!r}"
    try:
        text = read_text(path, MOST_BYTES)
    except ConfigurationError as error:
        raise ConfigurationError(f"fleet: cannot read {error}") from error
    rows = list(_csv_rows(text, fleet))
    period: float | None = None
    for where, cells in rows:
        given = _number(where, _PERIOD, cells.pop(_PERIOD, None))
        if given is not None and period is not None and given != period:
            _refuse(where, f"{_PERIOD} is {given:g}, but {period:g} before; one for the whole trace, in one row")
        period = given if period is None else period
    return _trace(rows, period, fleet, path.parent)


def parse_yaml_trace(content: Mapping[str, Any], name: str, folder: Path) -> Trace:
    """The trace that a YAML file holds.

    Args:
        content: The file's.
        name: The file's, for messages.
        folder: Where devices that are files are looked for.

    Raises:
        ConfigurationError: It cannot be a trace.
    """
    fleet = f"fleet {name!r}"
    _check_columns(fleet, content, ("clients", _PERIOD))
    clients = content["clients"]
    if not isinstance(clients, list):
        _refuse(fleet, f"clients is {clients!r}; it must be a list of rows, each with {', '.join(COLUMNS)}")
    rows: list[_Row] = []
    for number, row in enumerate(clients, start=1):
        where = f"{fleet}, row {number}"
        if not isinstance(row, dict):
            _refuse(where, f"{row!r} is no mapping; give {', '.join(COLUMNS)}")
        _check_columns(where, row, COLUMNS)
        rows.append((where, {column: value for column, value in row.items() if value is not None and value != ""}))
    return _trace(rows, _number(fleet, _PERIOD, content.get(_PERIOD)), fleet, folder)


def _csv_rows(text: str, fleet: str) -> Iterator[_Row]:
    header: list[str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{fleet}, line {number}"
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            _refuse(where, f"is no CSV: {error}")
        if header is None:
            header = cells
            _check_columns(where, header, (*COLUMNS, _PERIOD))
            if missing := [column for column in COLUMNS[:2] if column not in header]:
                _refuse(where, f"column {missing[0]!r} is missing; the first line names the columns")
            if len(set(header)) < len(header):
                _refuse(where, f"column {max(header, key=header.count)!r} is there twice")
        elif len(cells) != len(header):
            _refuse(where, f"{len(cells)} cells for {len(header)} columns")
        elif any(cells):
            yield where, {column: cell for column, cell in zip(header, cells, strict=True) if cell}


def _trace(rows: Sequence[_Row], period: float | None, fleet: str, folder: Path) -> Trace:
    clients = _clients(rows, fleet)
    devices: dict[str, DeviceProfile] = {}
    for client in clients:
        device = client.cells["device"]
        if device not in devices:
            if len(devices) == MOST_DEVICES:
                _refuse(client.where, f"names another device after {MOST_DEVICES} different ones, which is the most")
            try:
                devices[device] = load_profile(device_file(device, folder))
            except ConfigurationError as error:
                raise ConfigurationError(f"{client.where}: {error}") from error
    profiles = list(dict.fromkeys(devices.values()))
    places = {device: profiles.index(profile) for device, profile in devices.items()}
    uplinks, downlinks = (
        np.array([1e6 * client.cells.get(column, math.nan) for client in clients]) for column in _FROM_DEVICE[1:]
    )
    return Trace(
        tuple(profiles),
        np.array([places[client.cells["device"]] for client in clients], np.int32),
        uplinks,
        downlinks,
        _availability(clients, period, fleet),
    )


def _clients(rows: Sequence[_Row], fleet: str) -> list[_Client]:
    """The clients in their order, each with what its rows say together."""
    clients: dict[int, _Client] = {}
    for where, given in rows:
        position = _position(where, given.get("client"))
        said: dict[str, Any] = {column: given[column] for column in _FROM_DEVICE if column in given}
        for column in _FROM_DEVICE[1:]:
            if column in said:
                said[column] = _number(where, column, said[column])
        if not isinstance(said.get("device", ""), str):
            _refuse(where, f"device is {said['device']!r}; it must be a device's name, or a file")
        client = clients.setdefault(position, _Client(where, said))
        if "device" not in client.cells:
            _refuse(where, f"client {position} has no device; its first row must name one")
        for column, value in said.items():
            if value != client.cells.get(column):
                _refuse(
                    where,
                    f"{column} of client {position} is {value!r}, but {client.cells.get(column)!r} in its first row; "
                    "say it there, leave it empty here",
                )
        window = _window(where, given)
        if window is None:
            client.always = client.always or where
        else:
            client.windows.append((*window, where))
        if client.always and (client.windows or client.where != where):
            _refuse(client.always, f"client {position} has no window here, but further rows; give every row one")
    for expected, position in enumerate(sorted(clients)):
        if position != expected:
            _refuse(
                fleet,
                f"client {expected} is missing, client {position} is there; a trace names every client, "
                "from 0 on, as client_ids has them",
            )
    if not clients:
        _refuse(fleet, "no client; give a row for each")
    return [clients[position] for position in range(len(clients))]


def _availability(clients: Sequence[_Client], period: float | None, fleet: str) -> Availability | None:
    last = max((end for client in clients for _, end, _ in client.windows), default=None)
    if last is None:
        return None
    period = last if period is None else period
    windows: list[tuple[int, float, float]] = []
    for position, client in enumerate(clients):
        client.windows.sort()
        before = (0.0, 0.0, "")
        for begin, end, where in client.windows or [(0.0, period, "")]:
            if begin < before[1]:
                _refuse(
                    where,
                    f"the window {begin:g} to {end:g} of client {position} overlaps its {before[0]:g} to "
                    f"{before[1]:g} ({before[2].removeprefix(f'{fleet}, ')}); make them one, or part them",
                )
            if end > period:
                _refuse(
                    where,
                    f"available_until_seconds is {end:g}, after the {_PERIOD} of {period:g}; a window that goes on "
                    "in the next period is two: one to its end, one from 0",
                )
            windows.append((position, begin, end))
            before = (begin, end, where)
    positions, begins, ends = zip(*windows, strict=True)
    return Availability(np.array(positions, np.int64), np.array(begins), np.array(ends), period)


def _window(where: str, given: Mapping[str, Any]) -> tuple[float, float] | None:
    begin, end = (_number(where, column, given.get(column), at_least=0.0) for column in _WINDOW)
    if begin is None and end is None:
        return None
    if begin is None or end is None:
        _refuse(where, f"{_WINDOW[begin is not None]} is missing; give both ends of a window, or none")
    if end <= begin:
        _refuse(
            where,
            f"the window ends at {end:g} and begins at {begin:g} seconds; it must end later. One that goes on in the "
            "next period is two: one to its end, one from 0",
        )
    return begin, end


def _position(where: str, value: Any) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_whole and not (isinstance(value, str) and value.isascii() and value.isdigit()):
        given = "missing" if value is None else f"{value!r}"
        _refuse(where, f"client is {given}; it must be a whole number: the client's place in client_ids, from 0")
    return int(value)


def _number(where: str, column: str, value: Any, at_least: float | None = None) -> float | None:
    """The cell as a number: positive, or `at_least` so much; None where it is empty."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (number <= 0 if at_least is None else number < at_least):
        allowed = "a positive number" if at_least is None else f"a number, {at_least:g} or more"
        _refuse(where, f"{column} is {value!r}; it must be {allowed}")
    return number


def _check_columns(where: str, given: Mapping[str, Any] | Sequence[str], allowed: Sequence[str]) -> None:
    for column in given:
        if column not in allowed:
            _refuse(
                where,
                f"unknown column {column!r}; allowed are {', '.join(allowed)}{nearest(str(column), allowed)}",
            )


def _refuse(where: str, message: str) -> NoReturn:
    raise ConfigurationError(f"{where}: {message}")
