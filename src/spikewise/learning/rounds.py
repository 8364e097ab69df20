"""Learning the units of one group of channels with the design neighbourhood, in rounds.

Each round estimates templates from the known spikes of each unit, makes patches with these templates, and
learns the network of each unit on its patches. In the first round only the labels are known. Before each
later round the network searches the label interval. Spikes that it finds with confidence count as labelled in
the next round: means over hundreds of spikes instead of five are nearly free of noise. Spikes that it finds
without confidence are only suspected: patches without the unit are not cut there.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from spikewise.core.constants import COINCIDENCE_MS
from spikewise.core.errors import SettingError
from spikewise.core.progress import READING_LABELLED, SEARCHING, ProgressCallback, learning_round
from spikewise.core.seeds import stage_generator, stage_seed
from spikewise.core.threads import on_all_cores
from spikewise.data.labels.label_set import KeptSpikes
from spikewise.data.recordings.reader import Traces
from spikewise.data.simulation.drift import move_weights
from spikewise.learning.backbone_training import PatchSet, train_backbone
from spikewise.learning.examples.patches import PatchMaker, PatchShape
from spikewise.learning.examples.resemblance import resembling_columns
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.training_set import Block
from spikewise.learning.examples.unit_templates import (
    TEMPLATE_MS,
    UnitTemplates,
    estimate_templates,
    measure_waveforms,
)
from spikewise.learning.settings import LearningSettings
from spikewise.learning.thresholds import find_in_block, near_any
from spikewise.learning.unit_progress import UnitProgress, load_progress
from spikewise.learning.unit_training import UnitTraining, evaluate_units, train_units
from spikewise.models.backbone_file import FEATURES, which_set
from spikewise.models.gates import block_samples
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.sorting.detector import label_radius_samples, stride_samples
from spikewise.sorting.detectors import make_detector

logger = logging.getLogger(__name__)

_INTERPOLATED_UM = 50.0
"""A moved template has no part farther from the channels of the one at rest than this and its motion. Chosen
by hand."""
_FAR_LABEL_MS = 0.5
"""Distance of labels from the peaks of their spikes that is told; the window reaches 0.9 ms."""


@dataclass(frozen=True)
class LearntUnits:
    """A network and the history of its training.

    Attributes
    ----------
    network : NeighbourhoodNetwork
    train_loss, held_out_loss : list of float
        Mean over the units, for each round.
    num_labelled : int
        Labels that could be learnt from.
    num_confident : list of int
        Spikes that were known in each round.
    interrupted : bool
        Whether Ctrl-C ended the training.
    waveforms : UnitWaveforms
        Means of the spikes that were known in the last round.
    """

    network: NeighbourhoodNetwork
    train_loss: list[float]
    held_out_loss: list[float]
    num_labelled: int
    num_confident: list[int]
    interrupted: bool
    waveforms: UnitWaveforms


class UnitLearner:
    """Learns the units of one group of channels.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces of the group.
    channel_positions_um : ndarray
        (num_channels, 2 or 3)
    window_samples : int
        Length of the network's window.
    settings : LearningSettings
    checkpoint : Path, optional
        File with the state of learning: learning continues from it and updates it.
    """

    def __init__(
        self,
        traces: Traces,
        channel_positions_um: np.ndarray,
        window_samples: int,
        settings: LearningSettings,
        checkpoint: Path | None = None,
    ):
        self.traces = traces
        self.checkpoint = checkpoint
        self.positions = np.asarray(channel_positions_um, dtype=float)
        self.settings = settings
        radius = label_radius_samples(settings.detection, traces.sampling_frequency)
        self.shape = PatchShape(window_samples, radius)
        stride = stride_samples(radius, NeighbourhoodNetwork.largest_stride)
        self.gate_block = block_samples(traces.sampling_frequency, stride)
        self._move_weights: np.ndarray | None = None
        self._similar: list[np.ndarray] | None = None  # found with the templates of the first round

    def store(self, blocks: Sequence[Block]) -> StoredTraces:
        """Read the traces of blocks into memory, with room for windows and templates around each spike."""
        template = round(max(TEMPLATE_MS) * self.traces.sampling_frequency / 1000)
        return StoredTraces(self.traces, blocks, 2 * max(self.shape.window_samples, template))

    def patches(
        self,
        stored: StoredTraces,
        frames: Sequence[np.ndarray],
        suspected: Sequence[np.ndarray],
    ) -> PatchMaker:
        """Return a maker of patches, given the global frames of each unit's known and suspected spikes."""
        columns = [stored.columns_of(of_unit)[0] for of_unit in frames]
        templates = estimate_templates(stored, columns, self.positions, self.traces.sampling_frequency)
        near = templates.nearest_channels(self.positions, self._num_near())
        moved = self._moved(templates)
        uncertain = [np.sort(stored.columns_of(of_unit)[0]) for of_unit in suspected]
        if moved is not None:
            if self._similar is None:
                self._similar = resembling_columns(stored, templates, near, moved)
            uncertain = [
                np.union1d(known, like) for known, like in zip(uncertain, self._similar, strict=True)
            ]
        uncertain = self._without_others(uncertain, columns, templates, near)
        return PatchMaker(stored, templates, near, columns, uncertain, self.shape, moved)

    def _without_others(
        self,
        uncertain: Sequence[np.ndarray],
        columns: Sequence[np.ndarray],
        templates: UnitTemplates,
        near: np.ndarray,
    ) -> list[np.ndarray]:
        """Drop, of the events that may be spikes of a unit, those that are known spikes of another one."""
        radius = round(COINCIDENCE_MS * self.traces.sampling_frequency / 1000)
        kept = []
        for unit, events in enumerate(uncertain):
            others, _ = templates.seen_by(unit, near[unit])
            known = np.sort(np.concatenate([np.empty(0, np.int64), *(columns[other] for other in others)]))
            is_own = near_any(np.sort(columns[unit]), events, radius)
            kept.append(events[is_own | ~near_any(known, events, radius)])
        return kept

    def _num_near(self) -> int:
        """Return how many channels a unit sees; it sees more if the channels lie closer together."""
        if self.settings.units.near_channels is not None:
            return self.settings.units.near_channels
        tree, radius = KDTree(self.positions), self.settings.units.near_um
        within = tree.query_ball_point(self.positions, radius, return_length=True)
        fewest, most = self.settings.units.near_limits
        return int(np.clip(np.median(within), fewest, most))

    def _moved(self, templates: UnitTemplates) -> np.ndarray | None:
        """Return the templates of units that have moved along the probe; None if no drift is expected."""
        furthest = self.settings.units.drift_um
        if furthest is not None:
            return self._moved_up_to(furthest, templates) if furthest else None
        if np.ptp(self.positions[:, 1]) < self.settings.units.long_probe_um:
            return None
        try:
            return self._moved_up_to(self.settings.units.usual_drift_um, templates)
        except SettingError as error:
            logger.info("no drift is expected: %s", error)
            return None

    def _moved_up_to(self, furthest: float, templates: UnitTemplates) -> np.ndarray:
        count = math.ceil(furthest / self.settings.units.drift_step_um)
        steps = np.delete(np.linspace(-furthest, furthest, 2 * count + 1), count)  # without 0: at rest
        if self._move_weights is None:
            self._move_weights = move_weights(self.positions[:, :2], steps).astype(np.float32)
        weights = self._move_weights
        near = cdist(self.positions, self.positions) <= furthest + _INTERPOLATED_UM
        moved = np.zeros((len(steps), *templates.values.shape), np.float32)

        def move(unit: int) -> None:
            seen = templates.values[unit].any(axis=1)
            reached = np.flatnonzero(near[seen].any(axis=0))
            of_unit = weights[:, reached][:, :, seen] @ templates.values[unit, seen]
            moved[:, unit, reached] = of_unit

        on_all_cores(move, range(len(templates.values)))
        return moved

    def learn(
        self,
        spikes: KeptSpikes,
        blocks: Sequence[Block],
        backbone: Backbone | None,
        progress: ProgressCallback,
    ) -> LearntUnits | None:
        """Learn all units; if no filters are given, learn these first.

        Return None if no label leaves a window to learn from.
        """
        training = [block for block in blocks if not block.held_out]
        progress(READING_LABELLED, 0, 1, "")
        stored, held_out = self.store(training), self.store([b for b in blocks if b.held_out])
        labelled = by_unit(spikes)
        num_labelled = sum(len(stored.columns_of(of_unit)[0]) for of_unit in labelled)
        if not num_labelled:
            return None
        known, suspected, rounds = labelled, labelled, self.settings.units.rounds
        progress(learning_round(1, rounds), 0, len(labelled), "mean waveforms")
        maker = self.patches(stored, known, suspected)
        self._tell_offsets(maker.templates, spikes)
        if backbone is None:
            backbone = self._backbone_from(maker, progress)
        network, done = self._network(maker, backbone), load_progress(self.checkpoint)
        if done.previous:
            network.load_state_dict(done.previous)
            network.eval()
        losses, held_out_losses, num_known = done.train_loss, done.held_out_loss, done.num_known
        for number in range(done.number, rounds):
            if number:
                found, uncertain = self._search(network, stored, training, progress)
                known = [np.union1d(a, b) for a, b in zip(labelled, found, strict=True)]
                suspected = [np.union1d(a, b) for a, b in zip(labelled, uncertain, strict=True)]
                progress(learning_round(number + 1, rounds), 0, len(labelled), "mean waveforms")
                maker = self.patches(stored, known, suspected)
            before = UnitProgress(
                number, [], losses, held_out_losses, num_known, {}, network.state_dict() if number else {}
            )
            learnt = self._network(maker, backbone)
            try:
                start = network if number else None
                loss = self._learn_round(learnt, maker, before, done, progress, start)
            except KeyboardInterrupt:
                logger.warning("training was interrupted in round %d; what was learnt is kept", number + 1)
                kept = network if number else learnt.eval()
                no_loss = [] if number else [np.nan]
                return LearntUnits(
                    kept,
                    losses + no_loss,
                    held_out_losses + no_loss,
                    num_labelled,
                    num_known,
                    True,
                    self._waveforms(stored, known),
                )
            network = learnt.eval()
            losses = [*losses, float(np.mean(loss))]
            held_out_losses = [*held_out_losses, self._held_out_loss(network, maker, held_out, labelled)]
            num_known = [*num_known, sum(map(len, known))]
            logger.info(
                "round %d: %d spikes, loss %.4f, held out %.4f",
                number + 1,
                num_known[-1],
                losses[-1],
                held_out_losses[-1],
            )
        waveforms = self._waveforms(stored, known)
        return LearntUnits(network, losses, held_out_losses, num_labelled, num_known, False, waveforms)

    def _waveforms(self, stored: StoredTraces, known: Sequence[np.ndarray]) -> UnitWaveforms:
        """Return the mean waveforms of the known spikes, given their global frames."""
        columns = [stored.columns_of(of_unit)[0] for of_unit in known]
        return measure_waveforms(stored, columns, self.positions, self.traces.sampling_frequency)

    def _tell_offsets(self, templates: UnitTemplates, spikes: KeptSpikes) -> None:
        """Warn of labels far from the peaks of their spikes, of which the network then sees only a part."""
        offsets_ms = templates.peak_offsets() * 1000 / self.traces.sampling_frequency
        far = np.flatnonzero(np.abs(offsets_ms) > _FAR_LABEL_MS)
        if len(far):
            shown = ", ".join(str(spikes.unit_ids[unit]) for unit in far[:10])
            logger.warning(
                "the labels of %d units (%s%s) lie %.1f ms from the peaks of their spikes, in the median: "
                "units that are labelled at the onset are found less well. Move these labels to the peaks "
                "(%+.1f ms)",
                len(far),
                shown,
                " and more" if len(far) > 10 else "",
                np.median(np.abs(offsets_ms[far])),
                np.median(offsets_ms[far]),
            )

    def _learn_round(
        self,
        network: NeighbourhoodNetwork,
        maker: PatchMaker,
        before: UnitProgress,
        done: UnitProgress,
        progress: ProgressCallback,
        start: NeighbourhoodNetwork | None,
    ) -> list[float]:
        """Learn the units of a round in place, skip those that are done, and save after each block."""
        learnt: list[float] = []
        if before.number == done.number and done.network:
            network.load_state_dict(done.network)
            learnt = done.unit_losses

        def keep(unit_losses: list[float]) -> None:
            if self.checkpoint is not None:
                state = dataclasses.replace(
                    before, unit_losses=list(unit_losses), network=network.state_dict()
                )
                state.save(self.checkpoint)

        training = self._training(before.number, network.num_units)
        stage, total = learning_round(before.number + 1, self.settings.units.rounds), network.num_units

        def tell(done: int) -> None:
            progress(stage, done, total, f"{done} of {total} units")

        return train_units(network, maker, training, tell, learnt, keep, start)

    def _training(self, number: int, num_units: int) -> UnitTraining:
        """Return the settings of a round: all rounds but the last get half of the effort."""
        patches, steps = self.settings.units.effort(num_units)
        if number + 1 < self.settings.units.rounds:
            patches, steps = -(-patches // 2), -(-steps // 2)
        seed = stage_seed(self.settings.training.seed, f"round {number}")
        units = self.settings.units
        return UnitTraining(
            patches_per_unit=patches,
            steps=steps,
            batch_size=units.unit_batch_size,
            learning_rate=units.unit_learning_rate,
            weight_decay=units.unit_weight_decay,
            seed=seed,
            gate_block=self.gate_block,
        )

    def _network(self, maker: PatchMaker, backbone: Backbone) -> NeighbourhoodNetwork:
        return NeighbourhoodNetwork(
            copy.deepcopy(backbone),
            len(self.positions),
            torch.from_numpy(maker.channel_index),
            self.settings.units.hidden_features,
        )

    def _backbone_from(self, maker: PatchMaker, progress: ProgressCallback) -> Backbone:
        """Learn filters from the patches of this recording alone."""
        patch_set = make_patch_set(maker, self.settings.units.scratch_patches, self.settings.training.seed)
        features, seed = FEATURES[which_set(self.traces.num_channels)], self.settings.training.seed
        return train_backbone(
            [patch_set], features, self.settings.units.scratch_steps, seed, progress=progress
        )

    def _held_out_loss(
        self,
        network: NeighbourhoodNetwork,
        maker: PatchMaker,
        held_out: StoredTraces,
        labelled: Sequence[np.ndarray],
    ) -> float:
        """Return the loss on patches of held-out time; NaN if there is none."""
        if not len(held_out.usable):
            return float("nan")
        none = [np.empty(0, np.int64)] * network.num_units
        own = [np.sort(held_out.columns_of(of_unit)[0]) for of_unit in labelled]
        other = maker.elsewhere(held_out, none, own)
        return float(
            np.mean(
                evaluate_units(
                    network, other, self.settings.units.held_out_patches, self.settings.training.seed
                )
            )
        )

    def _search(
        self,
        network: NeighbourhoodNetwork,
        stored: StoredTraces,
        blocks: Sequence[Block],
        progress: ProgressCallback,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Search blocks; return the global frames of each unit's confident spikes and suspected spikes."""
        detector = make_detector(
            network,
            np.full(network.num_units, self.settings.units.suspected),
            self.traces.sampling_frequency,
            self.settings.detection,
            self.settings.sorting,
        )
        parts = []
        for done, block in enumerate(blocks):
            progress(SEARCHING, done, len(blocks), "")
            parts.append(find_in_block(detector, stored, block))
        progress(SEARCHING, len(blocks), len(blocks), "")
        confident, uncertain = [], []
        for unit in range(network.num_units):
            frames = np.concatenate([part.sample_index[part.unit_index == unit] for part in parts])
            responses = np.concatenate([part.response[part.unit_index == unit] for part in parts])
            sure = frames[responses > self.settings.units.confident]
            count = min(len(sure), self.settings.units.confident_spikes)
            spread = np.linspace(0, len(sure) - 1, count).round().astype(int)
            confident.append(sure[spread])
            uncertain.append(frames)
        return confident, uncertain


def make_patch_set(maker: PatchMaker, count: int, seed: int) -> PatchSet:
    """Make `count` patches of each unit, to learn filters from."""
    drawn = [
        maker.make(unit, count, stage_generator(seed, f"filters {unit}"))
        for unit in range(len(maker.channel_index))
    ]
    return PatchSet(
        torch.stack([patches.half() for patches, _ in drawn]), torch.stack([targets for _, targets in drawn])
    )


def by_unit(spikes: KeptSpikes) -> list[np.ndarray]:
    """Return the global frames of the positive spikes of each unit."""
    return [
        spikes.global_frame[spikes.is_positive & (spikes.unit_index == unit)]
        for unit in range(len(spikes.unit_ids))
    ]
