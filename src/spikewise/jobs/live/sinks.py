"""Where the spikes of a stream go: a growing result, ZeroMQ, UDP, markers of LSL, standard output.

A message is one JSON object: ``sampling_frequency``, ``sent_s`` (seconds since 1970), ``number`` (of the
spikes before these, so that a receiver notices lost messages), and ``spikes``, a list of objects with
``sample_index``, ``unit_id`` and ``response``.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from spikeinterface.core.base import minimum_spike_dtype

from spikewise.core.errors import MissingExtraError, SettingError
from spikewise.core.files import save_json, writing
from spikewise.data.labels.label_set import make_ordered_sorting
from spikewise.jobs.live.source import StreamError
from spikewise.models.checkpoint import Model, save_model
from spikewise.output.store import (
    MODEL_FILE,
    PROVENANCE_FILE,
    SPIKES_FILE,
    check_output,
    output_folder,
    save_sorting,
    spikes_hash,
)

_SPIKES_IN_DATAGRAM = 12
"""Spikes of a UDP datagram, which then fits into one Ethernet frame."""
_MOST_WAITING = 100_000
"""Most messages that wait for a slow receiver of ZeroMQ; it misses later ones, and their numbers tell it."""


@dataclass(frozen=True)
class Emission:
    """Spikes that became certain together.

    Attributes
    ----------
    spikes : ndarray of SPIKE
    num_samples : int
        Samples of the stream so far.
    """

    spikes: np.ndarray
    num_samples: int


@dataclass(frozen=True)
class Units:
    """The units of a stream, as sinks need them.

    Attributes
    ----------
    ids : list of int or str
    sampling_frequency : float
        In Hz.
    hash : str
        Of the model.
    save : callable
        Called with a folder: writes the model into it.
    properties : dict of str to ndarray
        (num_units,) properties of the units in a result.
    look_ahead : int
        Samples after a spike until it is certain, at most.
    main_columns : ndarray of int or None
        (num_units,) column of the samples on which each unit is drawn.
    """

    ids: list[int | str]
    sampling_frequency: float
    hash: str
    save: Callable[[Path], None]
    properties: dict[str, np.ndarray]
    look_ahead: int
    main_columns: np.ndarray | None = None


def units_of(model: Model, look_ahead: int, main_columns: np.ndarray | None = None) -> Units:
    """Return the units of a model whose spikes are certain after so many samples."""
    names = [name for group in model.groups for name in [group.name] * len(group.unit_ids)]
    thresholds = np.concatenate([group.thresholds for group in model.groups])
    properties = {"threshold": thresholds, "group": np.array(names)}

    def save(folder: Path) -> None:
        save_model(model, folder / MODEL_FILE)

    return Units(
        model.unit_ids, model.sampling_frequency, model.hash(), save, properties, look_ahead, main_columns
    )


class Sink(Protocol):
    """A receiver of spikes."""

    def advance(self, num_samples: int) -> None:
        """Take note that so many samples have arrived; called after each chunk, also without spikes."""

    def send(self, emission: Emission) -> None:
        """Send spikes on; there is at least one."""

    def close(self, facts: dict[str, Any] | None) -> None:
        """End; `facts` is the provenance, or None after an error."""


class PlainSink:
    """Base of sinks that need not know how many samples have arrived."""

    def advance(self, num_samples: int) -> None:
        """Do nothing."""


class _Messages:
    """Makes the messages of a stream."""

    def __init__(self, units: Units):
        self._unit_ids, self._rate = units.ids, units.sampling_frequency
        self._number = 0

    def of(self, spikes: np.ndarray) -> bytes:
        listed = [
            {"sample_index": sample, "unit_id": self._unit_ids[unit], "response": round(response, 4)}
            for sample, unit, response in spikes.tolist()
        ]
        message = {
            "sampling_frequency": self._rate,
            "sent_s": time.time(),
            "number": self._number,
            "spikes": listed,
        }
        self._number += len(listed)
        return json.dumps(message).encode()


class StandardOutput(PlainSink):
    """One message a line on standard output."""

    def __init__(self, name: str, units: Units):
        self._messages = _Messages(units)

    def send(self, emission: Emission) -> None:
        """Write one line."""
        sys.stdout.write(self._messages.of(emission.spikes).decode() + "\n")
        sys.stdout.flush()

    def close(self, facts: dict[str, Any] | None) -> None:
        """Nothing is left to do."""


class UdpSink(PlainSink):
    """Datagrams with at most twelve spikes each to an address, such as ``udp://127.0.0.1:9000``."""

    def __init__(self, name: str, units: Units):
        self._address = address_of_sink(name)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._messages = _Messages(units)

    def send(self, emission: Emission) -> None:
        """Send as many datagrams as are needed."""
        for first in range(0, len(emission.spikes), _SPIKES_IN_DATAGRAM):
            part = emission.spikes[first : first + _SPIKES_IN_DATAGRAM]
            self._socket.sendto(self._messages.of(part), self._address)

    def close(self, facts: dict[str, Any] | None) -> None:
        """Close the socket."""
        self._socket.close()


class ZmqSink(PlainSink):
    """Messages to all subscribers at an address where it listens, such as ``zmq://127.0.0.1:5560``."""

    def __init__(self, name: str, units: Units):
        try:
            import zmq
        except ImportError as error:
            raise MissingExtraError("pyzmq", "live", f"the sink {name}") from error
        host, port = address_of_sink(name)
        self._socket: Any = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, _MOST_WAITING)
        self._socket.setsockopt(zmq.LINGER, 1000)
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self._socket.close()
            raise StreamError(
                f"the sink {name} cannot listen there: {error}",
                "a free port of an address of this computer",
                "choose another port, or end the program that uses it",
            ) from error
        self._messages = _Messages(units)

    def send(self, emission: Emission) -> None:
        """Publish one message."""
        self._socket.send(self._messages.of(emission.spikes))

    def close(self, facts: dict[str, Any] | None) -> None:
        """Close the socket when what waits is sent."""
        self._socket.close()


class LslSink(PlainSink):
    """Markers in the lab streaming layer, such as ``lsl://spikes``: one text, the unit's id, for each spike.

    The time stamp of a marker is that of the spike, counted back from the last sample that has arrived.
    """

    def __init__(self, name: str, units: Units):
        from spikewise.jobs.live.lsl import import_lsl

        self._lsl = import_lsl(f"the sink {name}")
        title = urlsplit(name).netloc or "spikewise"
        source_id = f"spikewise-{title}-{units.hash[:12]}"
        info = self._lsl.StreamInfo(title, "Markers", 1, self._lsl.IRREGULAR_RATE, "string", source_id)
        self._outlet = self._lsl.StreamOutlet(info)
        self._unit_ids, self._rate = [str(unit_id) for unit_id in units.ids], units.sampling_frequency

    def send(self, emission: Emission) -> None:
        """Push one marker for each spike."""
        now = self._lsl.local_clock()
        for sample, unit, _ in emission.spikes.tolist():
            age = (emission.num_samples - 1 - sample) / self._rate
            self._outlet.push_sample([self._unit_ids[unit]], now - age)

    def close(self, facts: dict[str, Any] | None) -> None:
        """End the outlet."""
        del self._outlet


class _Unfinished(Exception):
    """Ends the output folder of a stream that broke."""


class FolderSink(PlainSink):
    """A result that grows: ``spikes.csv`` has whole lines at every moment, and the end makes it a result.

    Parameters
    ----------
    name : str
        Path of the folder.
    units : Units
    overwrite : bool
        Whether an earlier result there may be replaced.
    """

    def __init__(self, name: str, units: Units, overwrite: bool = False):
        self._units = units
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(output_folder(check_output(name, overwrite), overwrite))
        units.save(self._folder)
        self._file = self._stack.enter_context((self._folder / SPIKES_FILE).open("wb", buffering=0))
        self._write(b"sample_index,unit_id,response\n")
        self._names = [_cell(unit_id) for unit_id in units.ids]

    def send(self, emission: Emission) -> None:
        """Append one line for each spike."""
        lines = [
            f"{sample},{self._names[unit]},{response:.4f}\n"
            for sample, unit, response in emission.spikes.tolist()
        ]
        self._write("".join(lines).encode())

    def close(self, facts: dict[str, Any] | None) -> None:
        """Write sorting and provenance."""
        if facts is None:
            with suppress(_Unfinished), self._stack:  # an earlier result stays in place
                raise _Unfinished
            return
        with self._stack:
            sorting = self._sorting()
            save_sorting(sorting, self._folder)
            facts = {
                **facts,
                "result": {
                    "num_units": sorting.get_num_units(),
                    "num_spikes": int(sorting.count_total_num_spikes()),
                    "spikes_hash": spikes_hash(sorting),
                },
            }
            save_json(facts, self._folder / PROVENANCE_FILE)

    def _write(self, lines: bytes) -> None:
        with writing(self._folder):
            self._file.write(lines)

    def _sorting(self) -> Any:
        units = self._units
        table = pd.read_csv(self._folder / SPIKES_FILE, usecols=[0, 1], dtype={"unit_id": str})
        places = {str(unit_id): index for index, unit_id in enumerate(units.ids)}
        spikes = np.zeros(len(table), minimum_spike_dtype)
        spikes["sample_index"] = table["sample_index"]
        spikes["unit_index"] = table["unit_id"].map(places)
        sorting = make_ordered_sorting(spikes, units.sampling_frequency, np.arange(len(places)), 1)
        sorting = sorting.rename_units(units.ids)
        for name, values in units.properties.items():
            sorting.set_property(name, values)
        return sorting


def address_of_sink(name: str) -> tuple[str, int]:
    """Return host and port; the host is this computer if none is given."""
    try:
        url = urlsplit(name)
        host, port = url.hostname or "127.0.0.1", url.port
    except ValueError:
        port = None
    if port is None:
        raise SettingError(
            f"the sink {name} has no port", "an address such as udp://127.0.0.1:9000", "add it"
        )
    return host, port


def _cell(unit_id: int | str) -> str:
    """Return an id as a cell of a CSV file."""
    text = str(unit_id)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text
