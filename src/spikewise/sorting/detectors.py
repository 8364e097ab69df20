"""The choice of a detector. Detectors are chosen here only.

=================  ==========================  ==============================================================
detector           network                     where
=================  ==========================  ==============================================================
`SparseDetector`   of the neighbourhood        CPU: computes each unit only where its gate is open
                   design
`DeviceDetector`   of the neighbourhood        GPU: computes all units at every output, as large products
                   design
`DenseDetector`    any                         CPU or GPU: computes all units at every output; the reference
=================  ==========================  ==============================================================
"""

from __future__ import annotations

import numpy as np

from spikewise.core.config import DetectionConfig, SortingConfig
from spikewise.core.devices import choose_device
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.detector import Detector
from spikewise.sorting.device_detector import DeviceDetector
from spikewise.sorting.sparse_detector import SparseDetector, network_with_gates
from spikewise.sorting.tensor_detector import DenseDetector


def make_detector(
    network: WindowedNetwork,
    thresholds: np.ndarray,
    sampling_frequency: float,
    detection: DetectionConfig,
    sorting: SortingConfig,
) -> Detector:
    """Return the fastest detector that can run a network on the device that the settings name.

    Parameters
    ----------
    network : WindowedNetwork
        Trained network; it is not changed.
    thresholds : ndarray
        (num_units,) response that a spike of each unit must exceed.
    sampling_frequency : float
        In Hz.
    detection : DetectionConfig
    sorting : SortingConfig
        Its `device`, `sparse` and `precision`.

    Raises
    ------
    SettingError
        If the device is not available.
    """
    device = choose_device(sorting.device)
    if device.type == "cpu" and sorting.sparse:
        with_gates = network_with_gates(network, sampling_frequency, detection)
        if with_gates is not None:
            return SparseDetector(with_gates, thresholds, sampling_frequency, detection)
    if device.type != "cpu" and isinstance(network, NeighbourhoodNetwork):
        precision = sorting.precision
        return DeviceDetector(network, thresholds, sampling_frequency, detection, device, precision)
    return DenseDetector(network, thresholds, sampling_frequency, detection, device)
