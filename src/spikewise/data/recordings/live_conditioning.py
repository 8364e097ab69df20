"""Condition a running stream as :class:`spikewise.data.recordings.conditioning.ConditionedRecording` does.

The numbers are those of the live filter on a recording of the same samples, to the bit, for any cut into
blocks: the same compiled loops run from the state that the samples before left. The filter begins anew at
each run, after a lead-in. So within the lead-in two filters run: the one whose numbers are used, and the next
one.

Shapes: raw samples are (num_samples, num_columns), conditioned ones (num_channels, num_samples).
"""

from __future__ import annotations

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.data.recordings.conditioning import LiveBand
from spikewise.data.recordings.conditioning_loops import (
    LANES,
    SECTIONS,
    live_bandpass_panel,
    reference_and_scale_panels,
)

_ROWS_AT_ONCE = 512
"""Most samples that are conditioned at once; chosen by hand."""


class LiveConditioner:
    """Filters, references and scales a stream that begins with the first sample that it is given.

    Parameters
    ----------
    band : LiveBand
    columns : ndarray of int
        (num_channels,) columns of the raw samples.
    is_used : ndarray of bool
        (num_channels,) channels that are not silenced.
    reference : ndarray of bool or None
        (num_channels,) channels of the common median; None for no median.
    gains : ndarray
        (num_channels,) by which channels are multiplied last; 0 for silenced channels.

    Attributes
    ----------
    width : int
        Rows of the memory that :meth:`push` writes to: the channels, in whole vectors.
    """

    def __init__(
        self,
        band: LiveBand,
        columns: np.ndarray,
        is_used: np.ndarray,
        reference: np.ndarray | None,
        gains: np.ndarray,
    ):
        num_channels = len(columns)
        num_panels = -(-num_channels // LANES)
        self.width = num_panels * LANES
        self._band, self._columns, self._is_used = band, columns.astype(np.int64), is_used
        self._panels = np.zeros((num_panels, _ROWS_AT_ONCE + LANES, LANES), np.float32)
        self._gains, self._offsets = np.zeros((2, self.width), np.float32)
        self._gains[:num_channels] = gains
        self._left_out = np.full((num_panels, LANES), np.inf, np.float32)
        if reference is not None:
            self._left_out.ravel()[np.flatnonzero(reference)] = 0
        # Of the run, and of the next one: the states of the filter and the first sample.
        self._states = np.zeros((2, num_panels, 2 * SECTIONS, LANES))
        self._bases = np.zeros((2, num_channels))
        self._num_samples = 0

    def push(self, raw: np.ndarray, by_channel: np.ndarray) -> None:
        """Condition the next samples.

        Parameters
        ----------
        raw : ndarray
            (num_samples, num_columns) of any real type.
        by_channel : ndarray of float32
            (width, num_samples + LANES or more) with contiguous samples; filled. The columns after the
            samples hold arbitrary numbers afterwards.
        """
        done = 0
        while done < len(raw):
            at = self._num_samples
            run_end = (at // self._band.run + 1) * self._band.run
            lead_in = run_end - self._band.lead_in
            if at % self._band.run == 0 and at:
                self._states[0], self._bases[0] = self._states[1], self._bases[1]
            end = run_end if at >= lead_in else lead_in
            count = min(len(raw) - done, end - at, _ROWS_AT_ONCE)
            part = raw[done : done + count]
            if at == lead_in:
                self._begin(1, part)
            if at == 0:
                self._begin(0, part)
            if at >= lead_in:
                self._filter(part, 1)
            self._filter(part, 0)
            reference_and_scale_panels(
                self._panels, 0, count, self._left_out, self._gains, self._offsets, by_channel[:, done:]
            )
            self._num_samples += count
            done += count

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of all that the next samples depend on."""
        return {
            "states": self._states.copy(),
            "bases": self._bases.copy(),
            "num_samples": np.array(self._num_samples),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a state of :meth:`state`; raise ValueError if it does not fit."""
        for name, own in self.state().items():
            if state[name].shape != own.shape or state[name].dtype != own.dtype:
                raise ValueError(f"its {name} do not fit the model")
        self._states[:], self._bases[:] = state["states"], state["bases"]
        self._num_samples = int(state["num_samples"])

    def _begin(self, which: int, raw: np.ndarray) -> None:
        """Begin a filter at the first of some samples."""
        self._states[which] = 0
        self._bases[which] = raw[0, self._columns]

    def _filter(self, raw: np.ndarray, which: int) -> None:
        bandpass_rows(
            raw,
            self._columns,
            self._is_used,
            self._bases[which],
            self._band.coefficients,
            self._states[which],
            self._panels,
        )


@compiled()
def bandpass_rows(
    raw: np.ndarray,
    columns: np.ndarray,
    is_used: np.ndarray,
    base: np.ndarray,
    coefficients: np.ndarray,
    states: np.ndarray,
    panels: np.ndarray,
) -> None:
    """Filter rows of raw samples (num_samples, num_columns) into panels, forward only.

    Parameters
    ----------
    columns, is_used, base : ndarray
        (num_channels,) columns of the samples, channels that are not silenced, and the samples that are
        subtracted.
    coefficients, states
        See :func:`spikewise.data.recordings.conditioning_loops.live_bandpass_panel`; one state a panel.
    panels : ndarray of float32
        (num_panels, num_samples or more, LANES); filled.
    """
    for panel in range(len(panels)):
        rows = panels[panel]
        for lane in range(LANES):
            channel = panel * LANES + lane
            if channel < len(columns) and is_used[channel]:
                column = columns[channel]
                for row in range(len(raw)):
                    rows[row, lane] = np.float64(raw[row, column]) - base[channel]
            else:
                rows[: len(raw), lane] = 0
        live_bandpass_panel(rows, len(raw), coefficients, states[panel])
