"""Programs that send samples as acquisition systems do, on the loopback address, for the tests of sources."""

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
    import socket

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
