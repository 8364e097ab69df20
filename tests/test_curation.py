"""Labels by hand: curations are applied where labels are read, and the browser saves them there."""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import numpy as np
import pytest
from browser import chromium, wait_until
from commands import QUICK, assert_told, finish, run, start, succeed
from spikeinterface.core import NumpySorting, load

import spikewise
from spikewise.core.errors import LabelsError, SettingError
from spikewise.data.labels.curation import apply_curation_file
from spikewise.data.labels.label_files import load_sorting
from spikewise.output.curating import CurationTranslator

IDS = [0, 1, 2]


def curation(unit_ids=IDS, **decided) -> dict:
    """A curation in SpikeInterface's format."""
    return {
        "format_version": "2",
        "unit_ids": list(unit_ids),
        "label_definitions": {
            "quality": {"label_options": ["good", "noise", "MUA"], "exclusive": True},
        },
        "manual_labels": [],
        "removed": [],
        "merges": [],
        "splits": [],
        **decided,
    }


def labelled(unit_id, quality) -> dict:
    return {"unit_id": unit_id, "labels": {"quality": [quality]}}


def trains() -> NumpySorting:
    """Three units of a few spikes."""
    return NumpySorting.from_unit_dict(
        {0: np.array([10, 40, 70]), 1: np.array([20, 50]), 2: np.array([30, 60, 90, 120])}, 1000.0
    )


def applied(tmp_path, **decided) -> dict:
    file = tmp_path / "curation.json"
    file.write_text(json.dumps(curation(**decided)))
    sorting = apply_curation_file(trains(), file)
    return {
        unit_id: sorting.get_unit_spike_train(unit_id, segment_index=0).tolist()
        for unit_id in sorting.unit_ids
    }


def test_merges_splits_removals_and_noise_are_applied(tmp_path):
    untouched = {0: [10, 40, 70], 1: [20, 50], 2: [30, 60, 90, 120]}
    assert applied(tmp_path) == untouched
    assert applied(tmp_path, removed=[1]) == {0: untouched[0], 2: untouched[2]}
    labels = [labelled(0, "noise"), labelled(1, "good"), labelled(2, "MUA")]
    assert applied(tmp_path, manual_labels=labels) == {1: untouched[1], 2: untouched[2]}
    merged = applied(tmp_path, merges=[{"unit_ids": [0, 1]}])
    assert sorted(merged.values()) == [[10, 20, 40, 50, 70], untouched[2]]
    split = applied(tmp_path, splits=[{"unit_id": 2, "mode": "indices", "indices": [[0, 3]]}])
    assert sorted(split.values()) == [[10, 40, 70], [20, 50], [30, 120], [60, 90]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "it holds a list"),
        (json.dumps(curation(unit_ids=[7, 8])), "does not fit its sorting"),
        (json.dumps(curation(merges=[{"unit_ids": [0, 99]}])), "cannot be read"),
    ],
)
def test_a_curation_that_cannot_be_used_is_told(tmp_path, text, told):
    file = tmp_path / "curation.json"
    file.write_text(text)
    with pytest.raises(LabelsError, match=told):
        apply_curation_file(trains(), file)


def test_splits_of_an_interval_become_splits_of_the_whole_and_back():
    translator = CurationTranslator(trains(), 50, 100)  # unit 2 keeps its spikes 1 and 2, unit 0 its spike 2
    part = curation(splits=[{"unit_id": 2, "mode": "indices", "indices": [[1]]}])
    whole = translator.to_whole(part)
    assert whole["splits"][0]["indices"] == [[2]]
    assert translator.to_interval(whole)["splits"][0]["indices"] == [[1]]
    outside = curation(splits=[{"unit_id": 2, "mode": "indices", "indices": [[0]]}])
    with pytest.raises(SettingError, match="outside of the interval"):
        translator.to_interval(outside)
    assert CurationTranslator(trains(), 0, 1000).to_whole(outside)["splits"][0]["indices"] == [[0]]


@pytest.fixture(scope="module")
def result(tetrode, trained, tmp_path_factory):
    """A sort of the tetrode; no test changes it."""
    output = tmp_path_factory.mktemp("curated") / "sorted"
    spikewise.sort(tetrode.recording, model=trained, output=output, report=False)
    return output


@pytest.fixture
def copied(result, tmp_path):
    return shutil.copytree(result, tmp_path / "sorted")


def test_train_learns_the_units_as_they_were_curated(capsys, tetrode, copied, tmp_path):
    ids = load(copied / "sorting").unit_ids.tolist()
    (copied / "curation.json").write_text(
        json.dumps(curation(ids, manual_labels=[labelled(ids[0], "noise")], merges=[{"unit_ids": ids[1:]}]))
    )
    before = load_sorting(copied / "sorting").count_num_spikes_per_unit(outputs="array")
    model = tmp_path / "curated.safetensors"
    told = succeed(capsys, "train", tetrode.recording, {"--labels": copied, "-o": model, **QUICK}).summary
    assert told["units"] == 1
    assert told["labels"] == before[1:].sum()
    assert spikewise.load_model(model).unit_ids[0] not in ids
    # A curation is work by hand: the result that holds it is not overwritten.
    told = run(
        capsys, "sort", tetrode.recording, {"--labels": tetrode.truth, "-o": copied, **QUICK}, "--overwrite"
    )
    assert_told(told, "holds curation.json")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def wait_for_server(url: str, process: subprocess.Popen, timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.status == 200
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"the page was never served: {process.communicate()[1]}")
            time.sleep(0.3)


CLICK = """
const find = (root) => {
  for (const element of root.querySelectorAll('*')) {
    if (element.tagName === 'BUTTON' && element.textContent.trim() === arguments[0]) return element;
    const inside = element.shadowRoot && find(element.shadowRoot);
    if (inside) return inside;
  }
  return null;
};
const button = find(document);
if (button) button.click();
return Boolean(button);
"""


def test_the_browser_saves_a_curation_where_train_reads_it(tetrode, copied):
    pytest.importorskip("spikeinterface_gui")
    pytest.importorskip("panel")
    file = copied / "curation.json"
    ids = load(copied / "sorting").unit_ids.tolist()
    file.write_text(json.dumps(curation(ids, merges=[{"unit_ids": ids[:2]}])))
    port = free_port()
    with chromium() as browser:
        process = start("gui", copied, {"--recording": tetrode.recording, "--port": port}, "--no-show")
        try:
            wait_for_server(f"http://localhost:{port}/", process)
            file.unlink()
            browser.get(f"http://localhost:{port}/")
            script = CLICK.replace("arguments[0]", "'Save curation'")
            wait_until(browser, script, timeout_s=120)
            end = time.monotonic() + 60
            while not file.exists() and time.monotonic() < end:
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGINT)
            outcome = finish(process, timeout_s=60)
    assert f"http://localhost:{port}/" in outcome.out
    assert outcome.code == 0
    assert "Traceback" not in outcome.err
    assert "error" not in outcome.err
    saved = json.loads(file.read_text())
    assert [sorted(merge["unit_ids"]) for merge in saved["merges"]] == [ids[:2]]
    assert load_sorting(copied).get_num_units() == len(ids) - 1


def test_what_the_browser_cannot_show_is_told(capsys, tetrode, copied):
    pytest.importorskip("spikeinterface_gui")
    late = {"--recording": tetrode.recording, "--interval": (100, 200)}
    assert_told(
        run(capsys, "gui", copied, late), "The interval is 100 to 200 s", "within a recording", "--interval"
    )
    assert_told(run(capsys, "gui", copied.parent / "none", late), "does not exist")
