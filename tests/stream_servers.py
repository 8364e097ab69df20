"""Programs that send samples as acquisition systems do, on the loopback address, for the tests of sources."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable

import flatbuffers
import numpy as np
import zmq


def falcon_message(samples: np.ndarray, number: int, rate: int, stream: str = "probe") -> bytes:
    """One message of the Falcon Output: samples (num_samples, num_channels) in microvolts."""
    builder = flatbuffers.Builder(4 * samples.size + 256)
    name = builder.CreateString(stream)
    codes = builder.CreateNumpyVector(np.zeros(len(samples), np.uint16))
    values = builder.CreateNumpyVector(np.ascontiguousarray(samples.T, "<f4").ravel())
    builder.StartObject(9)
    builder.PrependUOffsetTRelativeSlot(0, values, 0)
    builder.PrependUOffsetTRelativeSlot(1, codes, 0)
    builder.PrependUOffsetTRelativeSlot(2, name, 0)
    builder.PrependUint32Slot(3, samples.shape[1], 0)
    builder.PrependUint32Slot(4, len(samples), 0)
    builder.PrependUint64Slot(5, number, 0)
    builder.PrependFloat64Slot(6, 1.5, 0)
    builder.PrependUint64Slot(7, 3, 0)
    builder.PrependUint32Slot(8, rate, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Sender(threading.Thread):
    """Runs a function in a thread, and raises its error at the end."""

    def __init__(self, run: Callable[[], None]):
        super().__init__(daemon=True)
        self._run, self._error = run, None
        self.start()

    def run(self):
        try:
            self._run()
        except BaseException as error:
            self._error = error

    def finish(self):
        self.join(20)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error


def falcon_sender(port: int, blocks: list[tuple[int, np.ndarray]], rate: float) -> Sender:
    """Sends numbered blocks; first some of another stream, until the subscriber is there."""

    def run():
        socket = zmq.Context.instance().socket(zmq.XPUB)  # it is told when somebody subscribes
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.LINGER, 2000)
        socket.bind(f"tcp://127.0.0.1:{port}")
        assert socket.poll(10_000)
        socket.recv()
        socket.send(falcon_message(np.zeros((3, 2)), 0, 1000, "other"))
        for number, samples in blocks:
            socket.send(falcon_message(samples, number, round(rate)))
            time.sleep(0.0005)
        socket.close()

    return Sender(run)


def listener(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen(1)
    server.settimeout(20)
    return server


def intan_server(port: int, names: list[str], samples: np.ndarray, rate: float, first: int = 0) -> Sender:
    """RHX with int16 samples of the named channels; it sends them once, when it is told to run."""
    servers = listener(port), listener(port + 1)

    def run():
        commands, _ = servers[0].accept()
        commands.settimeout(20)
        enabled, waveforms, mode, rest = [], None, "Stop", ""
        while mode == "Stop":
            rest += commands.recv(4096).decode()
            *lines, rest = rest.split(";")
            for line in lines:
                if line == "get SampleRateHertz":
                    commands.sendall(f"Return: SampleRateHertz {round(rate)}".encode())
                elif line == "get RunMode":
                    commands.sendall(f"Return: RunMode {mode}".encode())
                elif line == "execute ClearAllDataOutputs":
                    enabled = []
                elif match := re.fullmatch(r"set ([A-H]-\d{3}).TCPDataOutputEnabled true", line):
                    enabled.append(match[1])
                elif line == "set RunMode Run":
                    mode = "Run"
                else:
                    assert line == "set TCPNumberDataBlocksPerWrite 1", line
        waveforms, _ = servers[1].accept()
        columns = [names.index(name) for name in sorted(enabled)]  # RHX sends in its own order
        values = (samples[:, columns].astype(np.int32) + 32768).astype("<u2")
        for begin in range(0, len(values) - 127, 128):
            block = struct.pack("<I", 0x2EF07A08)
            for index in range(begin, begin + 128):
                block += struct.pack("<i", first + index) + values[index].tobytes()
            waveforms.sendall(block)
        for one in (waveforms, commands, *servers):
            one.close()

    return Sender(run)


def spikeglx_server(port: int, samples: np.ndarray, rate: float) -> Sender:
    """SpikeGLX whose sample count grows at every question; it drops the connection once, at the middle."""
    server = listener(port)

    def serve(connection: socket.socket, state: dict) -> None:
        file = connection.makefile("rwb")
        for line in file:
            words = line.decode().split()
            if words[0] == "GETSTREAMSAMPLERATE":
                file.write(f"{rate:.6f}\nOK\n".encode())
            elif words[0] == "GETSTREAMSAMPLECOUNT":
                file.write(f"{state['count']}\nOK\n".encode())
                state["count"] = min(len(samples), state["count"] + 700)
            elif words[0] == "FETCH":
                assert words[1:3] == ["2", "1"]
                start, most = int(words[3]), int(words[4])
                part = samples[start : min(start + most, state["count"]), list(map(int, words[5].split("#")))]
                header = f"BINARY_DATA {part.shape[1]} {len(part)} uint64({start})\n"
                file.write(header.encode() + part.astype("<i2").tobytes() + b"OK\n")
            file.flush()
            if state["count"] > len(samples) // 2 and not state["dropped"]:
                state["dropped"] = True
                return

    def run():
        state = {"count": 0, "dropped": False}
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                serve(connection, state)
        server.close()

    return Sender(run)


def channel_message(values: np.ndarray, channel: int, number: int, rate: float, **content) -> list[bytes]:
    """One message of the ZMQ Interface: samples (num_samples,) of one channel in microvolts."""
    facts = {
        "stream": "probe",
        "channel_num": channel,
        "channel_name": f"CH{channel + 1}",
        "num_samples": len(values),
        "sample_num": number,
        "sample_rate": rate,
        **content,
    }
    header = {
        "message_num": 1,
        "type": "data",
        "content": facts,
        "data_size": 4 * len(values),
        "timestamp": 0,
    }
    return [b"DATA\0", json.dumps(header).encode(), values.astype("<f4").tobytes()]


def zmq_interface(
    port: int,
    blocks: list[tuple[int, np.ndarray]],
    rate: float,
    lost: set[tuple[int, int]],
    lives: list[dict],
) -> Sender:
    """Sends each channel of numbered blocks, but for lost (number, channel); keeps signs of life."""

    def run():
        context = zmq.Context.instance()
        socket, life = context.socket(zmq.XPUB), context.socket(zmq.REP)
        socket.setsockopt(zmq.SNDHWM, 0)
        for one in (socket, life):
            one.setsockopt(zmq.LINGER, 2000)
        socket.bind(f"tcp://127.0.0.1:{port}")
        life.bind(f"tcp://127.0.0.1:{port + 1}")
        assert socket.poll(10_000)
        socket.recv()
        socket.send_multipart(channel_message(np.zeros(3), 0, 0, 1000.0, stream="other"))
        for number, samples in blocks:
            for channel, values in enumerate(samples.T):
                if (number, channel) not in lost:
                    socket.send_multipart(channel_message(values, channel, number, rate))
            if life.poll(0):
                lives.append(json.loads(life.recv()))
                life.send(b"{}")
            time.sleep(0.001)
        socket.close()
        life.close()

    return Sender(run)


def network_events(port: int, received: list[str], answers: bool = True) -> Sender:
    """Answers messages as the Network Events plugin does, until ``end`` comes."""

    def run():
        socket = zmq.Context.instance().socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 500)
        socket.bind(f"tcp://127.0.0.1:{port}")
        while socket.poll(3000):
            received.append(socket.recv().decode())
            if answers:
                socket.send(b"TTLHandled")
        socket.close()

    return Sender(run)
