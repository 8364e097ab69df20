"""Other ways to tell good units from bad ones: the quality metrics of SpikeInterface, Bombcell, UnitRefine.

All are computed with SpikeInterface on the filtered recording. UnitRefine needs its models from Hugging Face;
where they cannot be fetched, it is left out.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import spikeinterface.full as si
from sklearn.metrics import roc_auc_score

BETTER = {
    "snr": 1,
    "num_spikes": 1,
    "firing_rate": 1,
    "presence_ratio": 1,
    "isi_violations_ratio": -1,
    "rp_contamination": -1,
    "sliding_rp_violation": -1,
    "amplitude_cutoff": -1,
    "noise_cutoff": -1,
    "amplitude_median_abs": 1,
    "amplitude_cv_median": -1,
    "sd_ratio": -1,
    "drift_ptp": -1,
    "isolation_distance": 1,
    "l_ratio": -1,
    "d_prime": 1,
    "nn_hit_rate": 1,
    "nn_miss_rate": -1,
    "nn_isolation": 1,
    "nn_noise_overlap": -1,
    "silhouette": 1,
    "sync_spike_2": -1,
    "bombcell": 1,
    "unitrefine": 1,
}
"""Whether a good unit has a large value (1) or a small one (-1)."""
UNITREFINE = {
    "noise_neural_classifier": "SpikeInterface/UnitRefine_noise_neural_classifier",
    "sua_mua_classifier": "SpikeInterface/UnitRefine_sua_mua_classifier",
}
_METRICS = [
    "num_spikes", "firing_rate", "presence_ratio", "snr", "isi_violation", "rp_violation",
    "sliding_rp_violation", "synchrony", "amplitude_cv", "amplitude_cutoff", "amplitude_median",
    "noise_cutoff", "drift", "sd_ratio",
]  # fmt: skip
_PCA_METRICS = ["mahalanobis", "d_prime", "nearest_neighbor", "nn_advanced", "silhouette"]
_BOMBCELL = {"good": 2.0, "non_soma": 1.0, "mua": 1.0, "noise": 0.0}


def measure_rivals(sorting: si.BaseSorting, recording: si.BaseRecording) -> pd.DataFrame:
    """Return a row for each unit; the columns are those of :data:`BETTER` that could be computed."""
    filtered = si.bandpass_filter(recording, freq_min=300, freq_max=6000)
    if recording.get_num_channels() >= 16:
        filtered = si.common_reference(filtered)
    quiet = {"n_jobs": 1, "progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analyzer = si.create_sorting_analyzer(sorting, filtered, format="memory", sparse=True, **quiet)
        analyzer.compute("random_spikes", max_spikes_per_unit=500, seed=0)
        for name in ("noise_levels", "waveforms", "templates", "spike_amplitudes", "spike_locations"):
            analyzer.compute(name, **quiet)
        analyzer.compute("principal_components", n_components=5, mode="by_channel_local", **quiet)
        analyzer.compute("unit_locations")
        analyzer.compute("template_metrics")
        analyzer.compute("quality_metrics", metric_names=_METRICS + _PCA_METRICS, seed=0, n_jobs=1)
        found = analyzer.get_metrics_extension_data()
        found = found.loc[:, ~found.columns.duplicated()].copy()
        labels = si.bombcell_label_units(sorting_analyzer=analyzer)
        refined = _unitrefine(analyzer)
    found["amplitude_median_abs"] = found["amplitude_median"].abs()
    found["bombcell"] = [_BOMBCELL[label] for label in labels.iloc[:, 0]]
    if refined is not None:
        found["unitrefine"] = refined
    kept = [name for name in BETTER if name in found]
    return found[kept].astype(float)


def _unitrefine(analyzer: si.SortingAnalyzer) -> np.ndarray | None:
    """Return 2 for a single unit, 1 for several, 0 for noise; None without its models."""
    from spikeinterface.curation import unitrefine_label_units

    try:
        labels = unitrefine_label_units(analyzer, **UNITREFINE)
    except Exception as error:  # there are many ways in which a download fails
        print(f"UnitRefine is left out, its models cannot be fetched: {type(error).__name__}: {error}")
        return None
    rank = {"sua": 2.0, "mua": 1.0, "noise": 0.0}
    return np.array([rank[label] for label in labels["unitrefine_label"]])


def rank_rivals(table: pd.DataFrame, is_good: np.ndarray, columns: list[str]) -> pd.DataFrame:
    """Return the area under the ROC curve of each column, the best first.

    A unit for which a measure has no value counts as the worst by it.
    """
    rows = []
    for name in columns:
        values = BETTER.get(name, 1) * table[name].to_numpy(dtype=float)
        known = np.isfinite(values)
        values = np.where(known, values, values[known].min() - 1 if known.any() else 0.0)
        rows.append({"measure": name, "auc": roc_auc_score(is_good, values), "units": int(known.sum())})
    return pd.DataFrame(rows).sort_values("auc", ascending=False, ignore_index=True)
