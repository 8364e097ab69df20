"""The base class of networks that turn traces into probabilities: a window that slides over the traces."""

from __future__ import annotations

from torch import Tensor, nn


class WindowedNetwork(nn.Module):
    """Logit of each unit at each sample, from a window around it.

    Parameters
    ----------
    num_channels : int
        Channels of the traces.
    num_units : int
        Units to tell apart; several may fire at once.
    window_samples : int
        Length of the window.
    """

    largest_stride = 2
    """Largest number of samples from one output to the next, for spikes whose plateau is long enough."""

    def __init__(self, num_channels: int, num_units: int, window_samples: int):
        super().__init__()
        self.num_channels = num_channels
        self.num_units = num_units
        self.window_samples = window_samples

    @property
    def left_margin(self) -> int:
        """Samples needed before the first output."""
        return (self.window_samples - 1) // 2

    @property
    def right_margin(self) -> int:
        """Samples needed after the last output."""
        return self.window_samples - 1 - self.left_margin

    def forward(self, traces: Tensor, stride: int = 1) -> Tensor:
        """Return the logit of each unit at each sample, or at every `stride`-th.

        Parameters
        ----------
        traces : Tensor
            (batch, num_samples, num_channels), in noise standard deviations.
        stride : int
            Samples from one output to the next.

        Returns
        -------
        Tensor
            Logits (batch, (num_samples - window_samples) // stride + 1, num_units); output ``t`` belongs to
            sample ``t * stride + left_margin``.
        """
        raise NotImplementedError
