"""The earlier place of :mod:`spikewise.data.labels.label_files`, for scripts that import it from here."""

from spikewise.data.labels.label_files import LABEL_FORMATS, load_labels, load_sorting

__all__ = ["LABEL_FORMATS", "load_labels", "load_sorting"]
