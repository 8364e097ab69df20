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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
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


class Sink(Protocol):
    """A receiver of spikes."""

    def send(self, emission: Emission) -> None:
        """Send spikes on; there is at least one."""

    def close(self, facts: dict[str, Any] | None) -> None:
        """End; `facts` is the provenance, or None after an error."""


class _Messages:
    """Makes the messages of a stream."""

    def __init__(self, model: Model):
        self._unit_ids, self._rate = model.unit_ids, model.sampling_frequency
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


class StandardOutput:
    """One message a line on standard output."""

    def __init__(self, name: str, model: Model):
        self._messages = _Messages(model)

    def send(self, emission: Emission) -> None:
        """Write one line."""
        sys.stdout.write(self._messages.of(emission.spikes).decode() + "\n")
        sys.stdout.flush()

    def close(self, facts: dict[str, Any] | None) -> None:
        """Nothing is left to do."""


class UdpSink:
    """Datagrams with at most twelve spikes each to an address, such as ``udp://127.0.0.1:9000``."""

    def __init__(self, name: str, model: Model):
        self._address = _address(name)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._messages = _Messages(model)

    def send(self, emission: Emission) -> None:
        """Send as many datagrams as are needed."""
        for first in range(0, len(emission.spikes), _SPIKES_IN_DATAGRAM):
            part = emission.spikes[first : first + _SPIKES_IN_DATAGRAM]
            self._socket.sendto(self._messages.of(part), self._address)

    def close(self, facts: dict[str, Any] | None) -> None:
        """Close the socket."""
        self._socket.close()


class ZmqSink:
    """Messages to all subscribers at an address where it listens, such as ``zmq://127.0.0.1:5560``."""

    def __init__(self, name: str, model: Model):
        try:
            import zmq
        except ImportError as error:
            raise MissingExtraError("pyzmq", "live", f"the sink {name}") from error
        host, port = _address(name)
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
        self._messages = _Messages(model)

    def send(self, emission: Emission) -> None:
        """Publish one message."""
        self._socket.send(self._messages.of(emission.spikes))

    def close(self, facts: dict[str, Any] | None) -> None:
        """Close the socket when what waits is sent."""
        self._socket.close()


class LslSink:
    """Markers in the lab streaming layer, such as ``lsl://spikes``: one text, the unit's id, for each spike.

    The time stamp of a marker is that of the spike, counted back from the last sample that has arrived.
    """

    def __init__(self, name: str, model: Model):
        from spikewise.jobs.live.lsl import import_lsl

        self._lsl = import_lsl(f"the sink {name}")
        title = urlsplit(name).netloc or "spikewise"
        source_id = f"spikewise-{title}-{model.hash()[:12]}"
        info = self._lsl.StreamInfo(title, "Markers", 1, self._lsl.IRREGULAR_RATE, "string", source_id)
        self._outlet = self._lsl.StreamOutlet(info)
        self._unit_ids, self._rate = [str(unit_id) for unit_id in model.unit_ids], model.sampling_frequency

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


class FolderSink:
    """A result that grows: ``spikes.csv`` has whole lines at every moment, and the end makes it a result.

    Parameters
    ----------
    name : str
        Path of the folder.
    model : Model
    overwrite : bool
        Whether an earlier result there may be replaced.
    """

    def __init__(self, name: str, model: Model, overwrite: bool = False):
        self._model = model
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(output_folder(check_output(name, overwrite), overwrite))
        save_model(model, self._folder / MODEL_FILE)
        self._file = self._stack.enter_context((self._folder / SPIKES_FILE).open("wb", buffering=0))
        self._write(b"sample_index,unit_id,response\n")
        self._names = [_cell(unit_id) for unit_id in model.unit_ids]

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
        model = self._model
        table = pd.read_csv(self._folder / SPIKES_FILE, usecols=[0, 1], dtype={"unit_id": str})
        places = {str(unit_id): index for index, unit_id in enumerate(model.unit_ids)}
        spikes = np.zeros(len(table), minimum_spike_dtype)
        spikes["sample_index"] = table["sample_index"]
        spikes["unit_index"] = table["unit_id"].map(places)
        sorting = make_ordered_sorting(spikes, model.sampling_frequency, np.arange(len(places)), 1)
        sorting = sorting.rename_units(model.unit_ids)
        sorting.set_property("threshold", np.concatenate([group.thresholds for group in model.groups]))
        names = [name for group in model.groups for name in [group.name] * len(group.unit_ids)]
        sorting.set_property("group", np.array(names))
        return sorting


SINKS: dict[str, Callable[[str, Model], Sink]] = {
    "zmq": ZmqSink,
    "udp": UdpSink,
    "lsl": LslSink,
}
"""Sinks by the beginning of their names; all other names are folders, and ``-`` is standard output."""


def open_sinks(names: Sequence[str], model: Model, overwrite: bool) -> list[Sink]:
    """Open sinks by their names; if one cannot be opened, the others are closed.

    Raises
    ------
    SpikewiseError
        If a name is not known, or its sink cannot be opened.
    """
    opened: list[Sink] = []
    try:
        for name in names:
            scheme = name.split("://")[0] if "://" in name else ""
            if name == "-":
                opened.append(StandardOutput(name, model))
            elif scheme in SINKS:
                opened.append(SINKS[scheme](name, model))
            elif scheme:
                raise SettingError(
                    f"the sink {name} is of no known kind",
                    f"a folder, -, or {', '.join(f'{kind}://...' for kind in SINKS)}",
                    "correct it",
                )
            else:
                opened.append(FolderSink(name, model, overwrite))
    except BaseException:
        for sink in opened:
            sink.close(None)
        raise
    return opened


def _address(name: str) -> tuple[str, int]:
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
