"""The tables of the experiments of Han & Wang, made from the rows of results, with the published claims.

Conventions: accuracies in percent, their differences in points; means and standard deviations over the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spikewise.papers.esort.config import Scale
from spikewise.papers.esort.methods import COMPARED, LEARNERS, METHOD_NAMES, RIVALS, UNLABELLED
from spikewise.papers.esort.plan import NOISE_UV, base_recipe

PUBLISHED_REDUCTION_PERCENT = 44.0
"""Largest reduction of labels at equal accuracy in the abstract of the paper."""
PUBLISHED_GAIN_POINTS = 25.68
"""Largest gain in accuracy in the abstract of the paper, in points."""
PUBLISHED_SECONDS_OF_50 = 1.32
"""Seconds for sorting 50 s in the abstract of the paper."""
PAIRS = (
    ("spikewise", "spikewise_scratch"),
    ("esort_transfer", "esort"),
    ("esort_transfer_denser", "esort"),
    ("spikewise", "esort"),
)
"""Methods, each with the method from scratch that it is compared with."""
_CONDITION = ["probe", "num_units", "noise_uV", "drift"]
_SCORES = {
    "accuracy": ("accuracy", "mean"),
    "sd": ("accuracy", "std"),
    "precision": ("precision", "mean"),
    "recall": ("recall", "mean"),
    "num_seeds": ("accuracy", "count"),
}


def make_tables(rows: pd.DataFrame, scale: Scale, experiments: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the tables of the chosen experiments.

    Parameters
    ----------
    rows : DataFrame
        Columns as in :data:`spikewise.papers.esort.runs.COLUMNS`; rows without a score are left out.
    scale : Scale
        Scale of the rows.
    experiments : sequence of str
        Letters.

    Returns
    -------
    dict of str to DataFrame
        By name: `claims`, `labels` (a), `labels_needed` (b), `probes` (c), `noise` (d), `drift` (e),
        `sorters` and `best_sorters` (f); only tables of chosen experiments that have rows.
    """
    rows = rows[rows["accuracy"].notna()]
    base = base_recipe(scale, 0)
    has_standard_labels = rows["labels_per_unit"] == scale.labels_per_unit
    is_quiet, is_still = rows["noise_uV"] == NOISE_UV, rows["drift"] == "none"
    is_plain = rows["pretraining_drift"] == "none"
    is_base = (rows["probe"] == base.probe) & (rows["num_units"] == base.num_units)
    is_compared = rows["method"].isin(COMPARED) & has_standard_labels
    is_other = rows["method"].isin([*UNLABELLED, *RIVALS])
    labels = _means(
        rows[is_base & is_quiet & is_still & is_plain & rows["method"].isin(LEARNERS)],
        ["method", "labels_per_unit"],
    )
    sorters = sorter_table(rows[is_base & is_quiet & is_still & is_plain], scale.labels_per_unit)
    probe_keys = ["probe", "num_channels", "source", "num_units", "method"]
    with_filters = (
        is_base & is_quiet & has_standard_labels & rows["method"].isin([*COMPARED, "esort_transfer"])
    )
    tables = {
        ("a", "labels"): labels,
        ("b", "labels_needed"): labels_needed_table(labels),
        ("c", "probes"): _means(rows[is_compared & is_quiet & is_still], probe_keys),
        ("d", "noise"): _means(rows[is_base & (is_compared | is_other) & is_still], ["noise_uV", "method"]),
        ("e", "drift"): _means(rows[with_filters], ["drift", "pretraining_drift", "method"]),
        ("f", "sorters"): sorters,
        ("f", "best_sorters"): best_sorter_table(rows[is_plain & (is_compared | is_other)]),
    }
    chosen = {name: table for (key, name), table in tables.items() if key in experiments and len(table)}
    return {"claims": claims_table(chosen), **chosen}


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    return rows.groupby(keys, sort=False).agg(**_SCORES).reset_index()


def labels_needed(counts: Sequence[float], accuracies: Sequence[float], wanted: float) -> float:
    """Return the number of labels at which a curve reaches an accuracy.

    Parameters
    ----------
    counts, accuracies : sequence of float
        The curve, ascending in counts. Where it falls, the best accuracy so far is used.
    wanted : float
        Accuracy.

    Returns
    -------
    float
        Interpolated linearly; the lowest count if it is enough, infinity if no count is.
    """
    reached = np.maximum.accumulate(np.asarray(accuracies, dtype=float))
    enough = np.flatnonzero(reached >= wanted)
    if not len(enough):
        return float("inf")
    at = int(enough[0])
    if at == 0:
        return float(counts[0])
    share = (wanted - reached[at - 1]) / (reached[at] - reached[at - 1])
    return float(counts[at - 1] + share * (counts[at] - counts[at - 1]))


def labels_needed_table(labels: pd.DataFrame) -> pd.DataFrame:
    """Compare methods with those from scratch, at equal accuracy and at equal numbers of labels.

    Parameters
    ----------
    labels : DataFrame
        `method`, `labels_per_unit`, `accuracy`.

    Returns
    -------
    DataFrame
        For each of :data:`PAIRS` and each number of labels: `accuracy`, `baseline_accuracy`, `gain_points`,
        `labels_needed` by the baseline for the same accuracy, `reduction_percent` of labels. `bound` is
        "at least" if the baseline's curve ends below that accuracy, and "at most" if it begins at or above
        it; `labels_needed` is then the last or the first number of labels of the curve.
    """
    curves = {str(name): part.sort_values("labels_per_unit") for name, part in labels.groupby("method")}
    found = []
    for method, baseline in PAIRS:
        if method not in curves or baseline not in curves:
            continue
        counts, known = curves[baseline]["labels_per_unit"].to_list(), curves[baseline]["accuracy"].to_list()
        at_count = dict(zip(counts, known, strict=True))
        mine = zip(curves[method]["labels_per_unit"], curves[method]["accuracy"], strict=True)
        for count, accuracy in mine:
            needed = labels_needed(counts, known, accuracy)
            bound = "at least" if np.isinf(needed) else "at most" if accuracy <= known[0] else ""
            needed = counts[-1] if np.isinf(needed) else needed
            found.append(
                {
                    "method": method,
                    "baseline": baseline,
                    "labels_per_unit": count,
                    "accuracy": accuracy,
                    "baseline_accuracy": at_count.get(count, np.nan),
                    "gain_points": accuracy - at_count.get(count, np.nan),
                    "bound": bound,
                    "labels_needed": needed,
                    "reduction_percent": 100 * (1 - count / needed),
                }
            )
    names = ["method", "baseline", "labels_per_unit", "accuracy", "baseline_accuracy", "gain_points", "bound"]
    return pd.DataFrame(found, columns=[*names, "labels_needed", "reduction_percent"])


def sorter_table(rows: pd.DataFrame, labels_per_unit: int) -> pd.DataFrame:
    """Compare sorters on one recording: the networks with labels, then all methods without labels.

    Returns
    -------
    DataFrame
        Scores and `accuracy_all_spikes`, which counts the spikes of units without a match as false;
        `learning_s`; `sorting_s_of_50`, the seconds for finding the spikes of 50 s.
    """
    with_labels = rows["method"].isin(COMPARED) & (rows["labels_per_unit"] == labels_per_unit)
    part = rows[with_labels | rows["method"].isin([*UNLABELLED, *RIVALS])]
    part = part.assign(sorting_s_of_50=50 * part["sorting_s"] / part["sorted_s"])
    table = part.groupby(["method", "labels_per_unit"], sort=False).agg(
        **_SCORES,
        accuracy_all_spikes=("accuracy_all_spikes", "mean"),
        num_units_found=("num_units_found", "mean"),
        learning_s=("learning_s", "mean"),
        sorting_s_of_50=("sorting_s_of_50", "mean"),
    )  # fmt: skip
    order = {name: index for index, name in enumerate(METHOD_NAMES)}
    return table.reset_index().sort_values("method", key=lambda names: names.map(order), ignore_index=True)


def best_sorter_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare Spikewise with the best other sorter on each kind of recording.

    Parameters
    ----------
    rows : DataFrame
        Rows of methods with one number of labels, and of methods without labels.

    Returns
    -------
    DataFrame
        For each kind of recording on which other sorters ran: `best_sorter` by its mean accuracy over the
        recordings, its `best_accuracy`; `with_labels` and `without_labels`, the accuracy of Spikewise, and
        `gain_with_labels` and `gain_without_labels` in points.
    """
    means = _means(rows, [*_CONDITION, "method"]).pivot(index=_CONDITION, columns="method", values="accuracy")
    others = means.reindex(columns=list(RIVALS)).dropna(how="all")
    table = pd.DataFrame({"best_sorter": others.idxmax(axis=1), "best_accuracy": others.max(axis=1)})
    for name, method in (("with_labels", "spikewise"), ("without_labels", "spikewise_no_labels")):
        table[name] = means.reindex(columns=[method])[method]
        table[f"gain_{name}"] = table[name] - table["best_accuracy"]
    return table.reset_index()


def claims_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the claims of the paper's abstract beside the measured values.

    Returns
    -------
    DataFrame
        `claim`, `method`, `compared_with`, `published`, `measured`, `bound`, `unit`, `labels_per_unit` at
        which the largest value was found. `published` is NaN if the paper gives no number.
    """
    found: list[tuple] = []
    needed = tables.get("labels_needed", pd.DataFrame(columns=["method", "baseline"]))
    for (method, baseline), part in needed.groupby(["method", "baseline"], sort=False):
        rows = part.to_dict("records")
        usable = [row for row in rows if row["bound"] != "at most"]
        if usable:
            best = max(usable, key=lambda row: row["reduction_percent"])
            found.append(
                ("fewer labels for equal accuracy, largest", method, baseline, PUBLISHED_REDUCTION_PERCENT,
                 best["reduction_percent"], best["bound"], "%", best["labels_per_unit"])
            )  # fmt: skip
        paired = [row for row in rows if not np.isnan(row["gain_points"])]
        if paired:
            best = max(paired, key=lambda row: row["gain_points"])
            found.append(
                ("gain in accuracy, largest", method, baseline, PUBLISHED_GAIN_POINTS,
                 best["gain_points"], "", "points", best["labels_per_unit"])
            )  # fmt: skip
    if "sorters" in tables:
        found += _sorter_claims(tables["sorters"])
    names = ["claim", "method", "compared_with", "published", "measured", "bound", "unit", "labels_per_unit"]
    return pd.DataFrame(found, columns=names)


def _sorter_claims(sorters: pd.DataFrame) -> list[tuple]:
    scores = {str(row.pop("method")): row for row in sorters.to_dict("records")}
    ours = [name for name in COMPARED if name in scores]
    claims: list[tuple] = [
        ("seconds to sort 50 s (published on a GPU)", name, "", PUBLISHED_SECONDS_OF_50,
         scores[name]["sorting_s_of_50"], "", "s", scores[name]["labels_per_unit"])
        for name in ours
    ]  # fmt: skip
    claims += [
        ("accuracy above another sorter (published: comparable with Kilosort4)", name, rival, np.nan,
         scores[name]["accuracy"] - scores[rival]["accuracy"], "", "points", scores[name]["labels_per_unit"])
        for name in ours for rival in RIVALS if rival in scores
    ]  # fmt: skip
    return claims
