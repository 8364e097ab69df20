"""The motion of the probe in a report: its numbers, what is said of it, and how a browser draws it."""

from dataclasses import replace

import numpy as np
import pytest
from browser import chromium, console_errors, wait_until
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from spikeinterface.core.motion import Motion

from spikewise.output.measures import measure_units
from spikewise.output.motions import load_motions, load_uncertainty_um, motion_folder, save_motion
from spikewise.output.report.motion_lines import motion_lines, motion_notes, moved_spikes
from spikewise.output.report.page import write_report
from spikewise.output.samples import sample_spikes

from test_report import RATE, group_model, small_result  # isort: skip
from test_report_page import NOISE, label_of, made_result  # isort: skip

FOUND = {"followed": True, "reason": "it moves"}
UNCERTAINTY = [np.array([[1.0, 3.0], [1.0, 3.0]])]


def ramp(*ends: float) -> Motion:
    """A motion from 0 at 0 s to these displacements at 40 s, at 0 um and at 100 um."""
    return Motion([np.array([[0.0, 0.0], ends])], [np.array([0.0, 40.0])], np.array([0.0, 100.0]), "y")


def moving_result(facts=FOUND):
    """The result of the other page, on a probe of 100 um that moves by 20 um below and by 40 um above."""
    result, readers, _ = made_result()
    moved = {"motions": {"0": ramp(20.0, 40.0)}, "motion_uncertainty_um": {"0": UNCERTAINTY}}
    provenance = {**result.provenance, "motion": {"0": facts}}
    return replace(result, provenance=provenance, **moved), readers


def test_lines_are_at_depths_of_the_probe_with_their_uncertainty():
    lines = motion_lines(moving_result()[0])
    depths = [line.depth_um for line in lines]
    np.testing.assert_allclose(
        depths, np.ptp(group_model(6, ["a"]).channel_positions_um[:, 1]) * (np.arange(6) + 0.5) / 6
    )
    for line in lines:
        (part,) = line.parts
        share = min(line.depth_um / 100, 1)
        np.testing.assert_allclose(part.times_s, [0, 40])
        np.testing.assert_allclose(part.moved_um, [0, 20 + 20 * share])
        np.testing.assert_allclose(part.uncertainty_um, 1 + 2 * share)


def test_a_second_segment_begins_where_the_first_ends():
    result = small_result([[(10, 0)], [(10, 0)]], ["a"], [int(3 * RATE), int(5 * RATE)])
    motion = Motion([np.array([[1.0]]), np.array([[2.0]])], [np.array([0.5])] * 2, np.zeros(1), "y")
    lines = motion_lines(replace(result, motions={"0": motion}))
    assert [
        [(*part.times_s, *part.moved_um, part.uncertainty_um) for part in line.parts] for line in lines
    ] == [[(0.5, 1.0, None), (3.5, 2.0, None)]] * 6


def test_each_spike_is_moved_as_its_unit_is():
    result, readers = moving_result()
    units, _ = measure_units(result, readers)
    samples = sample_spikes(result, units, readers, [])
    moved = moved_spikes(result, units, samples)
    for unit in units:
        rows = samples.of_unit(unit.unit_index)
        share = np.median(samples.depth_um[rows]) / 100
        np.testing.assert_allclose(moved[rows], samples.time_s[rows] / 40 * (20 + 20 * share), rtol=1e-3)
    assert moved_spikes(made_result()[0], units, samples) is None


def test_what_is_said_of_the_motion():
    result, _ = moving_result()
    assert motion_notes(result) == [
        "Motion of the probe was removed from the traces: the tissue moved along the probe, over a range of "
        "38.4 \N{MICRO SIGN}m. The uncertainty is 2.0 \N{MICRO SIGN}m (median): half of the difference "
        "between two halves of the events."
    ]
    given = replace(moving_result({"followed": True, "reason": "given"})[0], motion_uncertainty_um={})
    assert motion_notes(given) == [
        "A given motion was removed from the traces: the tissue moved along the probe, over a range of 38.4 "
        "\N{MICRO SIGN}m."
    ]
    facts = {"motion": {"0": {"followed": False, "reason": "the tissue moves by 0.6 um"}}}
    still = small_result([[(10, 0)]], ["a"], [1000], **facts)
    assert motion_notes(still) == [
        "no motion was removed from the traces: the tissue moves by 0.6 \N{MICRO SIGN}m."
    ]
    lost = replace(result, motions={})
    assert motion_notes(lost) == ["motion was removed from the traces, but its files cannot be read."]
    assert motion_notes(made_result()[0]) == []
    for wrong in (None, 3, {"0": 7}, ["0"]):
        assert motion_notes(small_result([[(10, 0)]], ["a"], [1000], motion=wrong)) == []


def test_groups_of_which_the_same_is_said_are_named_together():
    names = [f"shank {k}" for k in range(11)]
    groups = [group_model(4, [name], name) for name in names]
    off = {"followed": False, "reason": "switched off"}
    facts = {name: off for name in names[1:]} | {names[0]: {"followed": False, "reason": "<b>"}}
    notes = motion_notes(small_result([[(10, 0)]], names, [1000], groups=groups, motion=facts))
    assert notes == [
        "Group shank 0: no motion was removed from the traces: <b>.",
        f"Groups {', '.join(names[1:9])} and 2 more: no motion was removed from the traces: switched off.",
    ]


def test_the_uncertainty_is_kept_with_the_motion(tmp_path):
    save_motion(ramp(20.0, 40.0), UNCERTAINTY, tmp_path, "0")
    motions = load_motions(tmp_path, ["0"], 1)
    np.testing.assert_array_equal(load_uncertainty_um(tmp_path, motions)["0"], UNCERTAINTY)


@pytest.mark.parametrize(
    "wrong",
    [UNCERTAINTY[0][:1], -UNCERTAINTY[0], UNCERTAINTY[0] * np.nan, UNCERTAINTY[0].astype(str)],
    ids=["shape", "negative", "not a number", "text"],
)
def test_an_uncertainty_that_does_not_fit_is_left_out_with_a_word(wrong, tmp_path, caplog):
    save_motion(ramp(20.0, 40.0), UNCERTAINTY, tmp_path, "0")
    np.save(motion_folder(tmp_path, "0") / "uncertainty_um_seg0.npy", wrong)
    assert load_uncertainty_um(tmp_path, load_motions(tmp_path, ["0"], 1)) == {}
    assert "the uncertainty of the motion of group 0 is left out" in caplog.text


def test_an_uncertainty_is_never_unpickled(tmp_path, caplog):
    save_motion(ramp(20.0, 40.0), [], tmp_path, "0")
    file = motion_folder(tmp_path, "0") / "uncertainty_um_seg0.npy"
    np.save(file, np.array([{}], object), allow_pickle=True)
    assert load_uncertainty_um(tmp_path, load_motions(tmp_path, ["0"], 1)) == {}
    assert "is left out" in caplog.text


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def opened(browser, result, path, readers=None):
    browser.get(write_report(result, path, readers=readers, scales=NOISE if readers else None).as_uri())
    wait_until(browser, "return document.documentElement.dataset.ready")
    label_of(browser, "raster")
    return browser


def values_of(browser, trace: str) -> list:
    """A value of the traces of the raster chart."""
    return browser.execute_script(
        f"return [...document.getElementById('raster').data].map((trace) => {trace})"
    )


def view(browser, name: str) -> None:
    Select(browser.find_element(By.ID, "raster-view")).select_by_value(name)


def test_the_motion_is_drawn_over_the_spikes_and_alone(browser, tmp_path):
    result, readers = moving_result()
    opened(browser, result, tmp_path / "r.html", readers)
    assert "over a range of 38.4" in browser.find_element(By.CSS_SELECTOR, "p.motion").text
    view(browser, "depth")
    (still,) = values_of(browser, "[...trace.y]")
    (times,) = values_of(browser, "[...trace.x]")
    view(browser, "seen")
    seen, *drawn = values_of(browser, "[...trace.y]")
    moved = np.array(times) / 40 * (20 + np.array(still) * 0.2)
    np.testing.assert_allclose(np.array(seen) - still, moved, atol=0.1)
    assert len(drawn) == 12  # a band and a line for each depth
    for line, (band, middle) in zip(
        motion_lines(result), zip(drawn[::2], drawn[1::2], strict=True), strict=True
    ):
        end = line.depth_um + line.parts[0].moved_um[1]
        spread = line.parts[0].uncertainty_um[0]
        np.testing.assert_allclose(middle[:2], [line.depth_um, end], atol=0.1)
        assert middle[2] is None
        np.testing.assert_allclose(
            band[:4], [line.depth_um + spread, end + spread, end - spread, line.depth_um - spread], atol=0.1
        )
    assert values_of(browser, "trace.text && trace.text[1]")[-1] == "92 µm: 38.3 ± 2.8 µm"
    view(browser, "motion")
    alone = values_of(browser, "trace.y[1]")[1::2]
    np.testing.assert_allclose(alone, [line.parts[0].moved_um[1] for line in motion_lines(result)], atol=0.1)
    assert label_of(browser, "raster") == "Motion at 6 depths over 40.0 s."
    assert console_errors(browser) == []


def test_without_the_recording_the_motion_is_drawn_alone(browser, tmp_path):
    opened(browser, moving_result()[0], tmp_path / "r.html")
    options = browser.execute_script(
        "return [...document.getElementById('raster-view').options].map(o => o.value)"
    )
    assert options == ["units", "motion"]
    view(browser, "motion")
    assert len(values_of(browser, "trace.name")) == 12
    assert console_errors(browser) == []


def test_without_motion_there_are_no_such_views(browser, tmp_path):
    result, readers, _ = made_result()
    opened(browser, result, tmp_path / "r.html", readers)
    options = browser.execute_script(
        "return [...document.getElementById('raster-view').options].map(o => o.value)"
    )
    assert options == ["depth", "units", "amplitude"]
    assert browser.find_elements(By.CSS_SELECTOR, "p.motion") == []
