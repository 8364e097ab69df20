"""The page of a report in a real browser: it draws, sorts, filters, steps, and fits a telephone."""

import time

import numpy as np
import pandas as pd
import pytest
from browser import chromium, console_errors, resize, wait_until
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

import spikewise
from spikewise import api
from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.output.report.page import Comparison, write_report
from spikewise.output.report.page_data import TraceScale
from spikewise.output.result import StoredResult
from spikewise.output.store import spikes_hash

from test_report import RATE, ArrayTraces, NumpySorting, group_model, small_result  # isort: skip

NAMES = ["<b>a</b>", "b", "c", "10", "9"]
COUNTS = [40, 30, 20, 10, 5]
ALL_CHARTS = "return [...document.querySelectorAll('.chart')].map(chart => chart.id)"
SIZES = [6.0, 9.0, 12.0, 20.0, 15.0]
NOISE = {"0": TraceScale(np.array([5.0, 6.0, 7.0, 8.0, 9.0, 10.0]))}
"""Microvolts of the noise of each channel."""


def made_result() -> tuple[StoredResult, dict, NumpySorting]:
    """Five units on six channels, 40 s; the bigger the rarer; two of them have the same waveform."""
    generator = np.random.default_rng(1)
    length, channel_of = int(40 * RATE), [0, 1, 3, 5, 5]
    traces = generator.normal(0, 0.3, (length, 6)).astype(np.float32)
    spikes = []
    for unit, count in enumerate(COUNTS):
        for frame in np.linspace(1000, length - 4000, count).astype(int) + 131 * unit:
            spikes.append((int(frame), unit))
            for k, share in enumerate((0.4, 1.0, 0.5)):
                traces[frame + k - 1, channel_of[unit]] -= SIZES[unit] * share
    facts = {
        "groups": [
            {
                "name": "0",
                "train_loss": [0.3, 0.2],
                "held_out_loss": [0.4, 0.3],
                "best_epoch": 1,
                "num_labels_of_units": [5, 4, 3, 2, 1],
            }
        ]
    }
    labels = {"source": "by hand", "interval_s": [0.0, 10.0]}
    result = small_result(
        [sorted(spikes)], NAMES, [length], groups=[group_model(6, NAMES)], model_facts=facts, labels=labels
    )
    return result, {"0": ArrayTraces(traces, sampling_frequency=RATE)}, result.sorting


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A browser on the page of that result, with its own spikes as the truth."""
    result, readers, truth = made_result()
    path = tmp_path_factory.mktemp("page") / "report.html"
    performance = api.evaluate(truth, result.sorting)
    write_report(result, path, readers=readers, scales=NOISE, comparison=Comparison(truth, performance))
    with chromium() as browser:
        browser.get(path.as_uri())
        wait_until(browser, "return document.documentElement.dataset.ready")
        yield browser


@pytest.fixture
def page(opened):
    """The page as it is when it has just been opened."""
    resize(opened, 1280)
    opened.refresh()
    wait_until(opened, "return document.documentElement.dataset.ready")
    return opened


def shown(browser) -> list[str]:
    """Ids of the units in the table, from the top."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.cells[0].textContent.trim())"
    )


def chosen(browser) -> str:
    return browser.find_element(By.ID, "unit-name").text


def label_of(browser, chart: str) -> str:
    """What a chart says of itself, once it is drawn."""
    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", chart)
    return wait_until(browser, f"return document.getElementById('{chart}').getAttribute('aria-label')")


def click(browser, selector: str):
    """Click an element in the middle of the window, where the head of the page does not cover it."""
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()
    return element


def press(browser, key) -> None:
    ActionChains(browser).send_keys(key).perform()


def test_every_chart_draws_and_the_console_stays_silent(page):
    charts = page.execute_script(ALL_CHARTS)
    assert len(charts) == 19
    for chart in charts:
        assert label_of(page, chart)
        parts = ", ".join(f"#{chart} {kind}" for kind in (".trace", ".hm image", ".point"))
        assert wait_until(page, f"return document.querySelectorAll('{parts}').length") > 0, chart
    assert console_errors(page) == []
    assert page.execute_script("return document.querySelectorAll('#table b').length") == 0


def test_the_table_holds_all_units_and_sorts_by_number_and_name(page):
    assert shown(page) == NAMES
    header = click(page, "[data-sort=snr]")
    assert shown(page) == ["<b>a</b>", "b", "c", "9", "10"]
    assert header.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    header.click()
    assert shown(page) == ["10", "9", "c", "b", "<b>a</b>"]
    click(page, "[data-sort=unit]")
    assert [name for name in shown(page) if name.isdigit()] == ["9", "10"]  # by size, not as text


def test_filters_by_text_and_limits(page):
    text = page.find_element(By.ID, "filter-text")
    text.send_keys("ch5")
    assert shown(page) == ["10", "9"]
    assert page.find_element(By.ID, "shown").text == "2 of 5 units shown"
    text.clear()
    text.send_keys("\N{BULLET} nothing")
    assert shown(page) == []
    page.execute_script("arguments[0].value = ''", text)
    page.find_element(By.ID, "filter-snr").send_keys("10")
    assert shown(page) == ["c", "10", "9"]
    page.find_element(By.ID, "filter-rate").send_keys("0.2")
    assert shown(page) == ["c", "10"]


def test_units_are_chosen_by_click_and_key_in_the_order_of_the_table(page):
    assert chosen(page) == "Unit <b>a</b>"
    press(page, "j")
    assert chosen(page) == "Unit b"
    assert label_of(page, "unit-amplitudes").endswith("spikes of unit b over time.")
    press(page, "k")
    press(page, "k")
    assert chosen(page) == "Unit <b>a</b>"
    click(page, "tr[data-index='3'] button")
    assert chosen(page) == "Unit 10"
    assert page.execute_script("return document.querySelectorAll('#table tr[aria-current]').length") == 1
    facts = page.find_element(By.ID, "unit-facts").text.split("\n")
    assert facts[facts.index("spikes") + 1] == "10"
    assert "2 labelled spikes. Labels: by hand, 0 to 10 s." in page.find_element(By.ID, "unit-labels").text
    press(page, "/")
    press(page, "jk")
    assert page.find_element(By.ID, "filter-text").get_attribute("value") == "jk"
    assert chosen(page) == "Unit 10"


def test_excerpts_are_stepped_through_by_button_and_key(page):
    first = label_of(page, "moment-traces")
    drawn = "return document.querySelector('#moment-traces').data[0].y.slice(0, 50).join()"
    before = page.execute_script(drawn)
    click(page, "#moment-next")
    second = label_of(page, "moment-traces")
    assert second != first
    assert page.execute_script(drawn) != before
    assert "Excerpt 2 of 16" in page.find_element(By.ID, "moment-told").text
    press(page, "n")
    assert "Excerpt 3 of 16" in page.find_element(By.ID, "moment-told").text
    press(page, "p")
    press(page, "p")
    assert label_of(page, "moment-traces") == first
    assert page.execute_script(drawn) == before
    assert not page.find_element(By.ID, "moment-previous").is_enabled()


def test_the_page_turns_dark_and_its_charts_with_it(page):
    label_of(page, "unit-correlogram")
    look = (
        "return [getComputedStyle(document.body).backgroundColor,"
        " document.getElementById('unit-correlogram').layout.font.color]"
    )
    assert page.execute_script(look) == ["rgb(255, 255, 255)", "#1a1f27"]
    click(page, "#theme")
    assert page.execute_script(look) == ["rgb(21, 24, 29)", "#e5e8ed"]
    assert page.find_element(By.ID, "theme").text == "Light"


def test_the_pair_with_one_waveform_is_listed_and_drawn(page):
    rows = page.find_elements(By.CSS_SELECTOR, "#pair-rows tr")
    assert [row.find_element(By.TAG_NAME, "th").text for row in rows] == ["10 \N{EN DASH} 9"]
    assert label_of(page, "pair-probe") == "Mean waveforms of units 10 and 9."


def test_names_of_channels_lie_within_their_chart(page):
    """A name stands before its waveform; the first of these begins at the edge."""
    for chart in ("unit-probe", "pair-probe"):
        label_of(page, chart)
        texts = f"[...document.querySelectorAll('#{chart} .textpoint text')]"
        wait_until(page, f"return {texts}.length")
        left = f"document.getElementById('{chart}').getBoundingClientRect().left"
        assert page.execute_script(f"return {texts}[0].closest('[clip-path]') === null"), chart
        assert (
            page.execute_script(
                f"return Math.min(...{texts}.map(t => t.getBoundingClientRect().left)) - {left}"
            )
            > 0
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_telephone_shows_all_without_scrolling_to_the_side(page, theme):
    resize(page, 390)
    if theme == "dark":
        click(page, "#theme")
    for chart in page.execute_script(ALL_CHARTS):
        label_of(page, chart)
    root = "document.documentElement"
    assert page.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
    widths = "return [...document.querySelectorAll('.chart svg')].map(svg => svg.clientWidth)"
    assert max(page.execute_script(widths)) <= 390


def test_the_shaded_bands_are_the_time_that_was_not_read(page):
    """The spikes of this view are in the shown seconds; the view of units has spikes of all the time."""
    label_of(page, "raster")
    page.execute_script(
        "page.data.spikes.seconds_s = [[0, 1], [10, 12]];"
        "page.data.labels_are_everywhere = true; draw('raster')"
    )
    bands = "document.getElementById('raster').layout.shapes.map(shape => [shape.x0, shape.x1])"
    assert page.execute_script(f"return {bands}") == [[1, 10], [12, 40]]
    page.execute_script(
        "const view = document.getElementById('raster-view'); view.value = 'units';"
        "view.dispatchEvent(new Event('change'))"
    )
    assert page.execute_script(f"return {bands}") == []
    told = page.find_element(By.ID, "raster-drawn").text
    assert told == "105 spikes of 105 are drawn, evenly chosen from the whole recording."


def test_amplitudes_are_in_microvolts_with_a_bar_for_the_scale(page):
    """Unit 10 has 20 noise s.d. on the last channel, whose noise is 10 uV."""
    header = page.execute_script("return columns.indexOf('amplitude')")
    row = page.find_elements(By.CSS_SELECTOR, "tr[data-index='3'] > *")
    assert float(row[header].get_attribute("data-value")) == pytest.approx(200, rel=0.02)
    click(page, "tr[data-index='3'] button")
    label_of(page, "unit-amplitudes")
    drawn = "document.getElementById('unit-amplitudes')"
    assert page.execute_script(f"return {drawn}.layout.yaxis.title.text") == "amplitude (µV)"
    spikes, noise = page.execute_script(f"return [0, 1].map(k => Array.from({drawn}.data[k].y))")
    assert np.median(spikes) == pytest.approx(200, rel=0.03)
    assert np.mean(noise) == pytest.approx(3, rel=0.1)  # traces with a noise of 0.3, in steps of 10 uV
    label_of(page, "unit-probe")
    probe = "document.getElementById('unit-probe')"
    assert page.execute_script(f"return {probe}.layout.annotations[0].text") == "100 µV, 1 ms"
    bar, wave = page.execute_script(f"const d = {probe}.data; return [d[d.length - 1].y, Array.from(d[0].y)]")
    size = max(bar) - min(bar)  # of 100 uV
    first = [value for value in wave[:30] if value is not None]
    assert (first[0] - min(first)) / size == pytest.approx(2.0, rel=0.05)


def test_intervals_and_rates_are_drawn_with_the_violations_told(page):
    assert label_of(page, "unit-intervals") == "Inter-spike intervals of unit <b>a</b>: 0 under 1.5 ms."
    assert label_of(page, "unit-rate") == "Firing rate of unit <b>a</b> in 40 bins of 1.0 s."
    rates = page.execute_script("return Array.from(document.getElementById('unit-rate').data[0].y)")
    assert sum(rates) == COUNTS[0]


def test_any_two_units_are_compared(page):
    """The correlogram of two units that the list of pairs lacks is that of all their spikes."""
    label_of(page, "pair-correlogram")
    for name, unit in (("pair-first", "0"), ("pair-second", "1")):
        page.execute_script(
            "const select = document.getElementById(arguments[0]); select.value = arguments[1];"
            "select.dispatchEvent(new Event('change'))",
            name,
            unit,
        )
    _, _, sorting = made_result()
    a, b = (sorting.get_unit_spike_train(name) for name in NAMES[:2])
    lags_ms = (b[None, :] - a[:, None]).ravel() / RATE * 1000
    expected, _ = np.histogram(lags_ms, np.arange(-50, 51))
    shown = page.execute_script("return document.getElementById('pair-correlogram').data[0].y")
    assert shown == expected.tolist()
    assert sum(shown) > 0
    assert "counts all spikes" in page.find_element(By.ID, "pair-told").text
    features = page.find_element(By.ID, "pair-features").get_attribute("aria-label")
    assert features == "Similarity below 0.8: single spikes were not compared."


def test_a_pair_that_is_only_alike_says_why_and_shows_its_spikes(page):
    click(page, "#pair-rows button")
    told = page.find_element(By.ID, "pair-told").text
    assert "They share 0.0 % of the smaller unit's spikes beyond chance, which is less than 20 %." in told
    assert "Too few spikes to tell" in told
    told = label_of(page, "pair-features")
    read = page.execute_script(
        "const {unit} = page.data.spikes; return [3, 4].map(k => unpack(unit).filter(u => u === k).length)"
    )
    assert told == f"Components of {read[0]} and {read[1]} spikes of units 10 and 9."
    assert read[0] >= 5
    first, second = page.execute_script(
        "return document.getElementById('pair-features').data.map(trace => Array.from(trace.x))"
    )
    assert max(first) < min(second)  # one shape, two sizes: the first component tells them apart


@pytest.fixture
def downloads(opened, tmp_path):
    command = {"behavior": "allow", "downloadPath": str(tmp_path)}
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", command)
    return tmp_path


def saved(folder, name: str, timeout_s: float = 60.0):
    """The file of this name, as soon as the browser has written it."""
    end = time.monotonic() + timeout_s
    while not ((file := folder / name).exists() and file.stat().st_size):
        assert time.monotonic() < end, f"only {[path.name for path in folder.iterdir()]}"
        time.sleep(0.1)
    return file


def test_the_table_is_saved_as_it_is_shown(page, downloads):
    click(page, "[data-sort=spikes]")
    page.find_element(By.ID, "filter-snr").send_keys("8")
    click(page, "#save-table")
    table = pd.read_csv(saved(downloads, "unit-table.csv"), dtype={"unit": str})
    assert table["unit"].tolist() == ["9", "10", "c", "b"]
    assert table["spikes"].tolist() == [5, 10, 20, 30]
    assert table["true unit"].astype(str).tolist() == ["9", "10", "c", "b"]
    assert table["amplitude (µV)"].tolist() == pytest.approx([150, 200, 96, 54], rel=0.04)
    assert table["recall"].tolist() == [1.0] * 4


def test_figures_are_saved_as_svg_and_png(page, downloads):
    click(page, "#theme")
    label_of(page, "unit-correlogram")
    click(page, "button[data-chart=unit-correlogram][data-format=svg]")
    svg = saved(downloads, "unit-correlogram-_b_a_b_.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "lag (ms)" in svg
    assert "rgb(21, 24, 29)" in svg  # on the page's own background
    click(page, "button[data-chart=pair-correlogram][data-format=png]")
    with Image.open(saved(downloads, "pair-correlogram-10-9.png")) as image:
        shown = page.execute_script("return document.getElementById('pair-correlogram').clientWidth")
        assert image.size == (3 * shown, 3 * 240)


def test_the_whole_table_is_seen_on_a_screen_of_1280(page):
    """With the truth it has the most columns; the last one is the recall."""
    right, edge = page.execute_script(
        "const cells = document.querySelectorAll('#table thead th');"
        "return [cells[cells.length - 1].getBoundingClientRect().right,"
        " document.querySelector('#units .scroll').getBoundingClientRect().right]"
    )
    assert page.execute_script("return headers[headers.length - 1].textContent.trim()") == "recall"
    assert right <= edge


def test_every_column_says_what_it_means(page):
    missing = "return headers.filter(cell => !cell.firstElementChild.title).map(cell => cell.textContent)"
    assert page.execute_script(missing) == []
    click(page, "#units summary")
    assert "Second coordinate of the unit" in page.find_element(By.ID, "columns").text


def test_a_report_without_the_recording_draws_what_it_has(opened, tmp_path):
    result, _, _ = made_result()
    opened.get(write_report(result, tmp_path / "r.html").as_uri())
    wait_until(opened, "return document.documentElement.dataset.ready")
    assert label_of(opened, "raster") == "105 spikes of 5 units over 40.0 s."
    assert label_of(opened, "unit-correlogram") == "Auto-correlogram of unit <b>a</b>."
    assert console_errors(opened) == []


def test_units_of_two_tetrodes_are_compared_by_their_spikes_alone(opened, tmp_path):
    """Their waveforms share no channel; the gain of the second tetrode is not known."""
    generator = np.random.default_rng(4)
    groups = [group_model(4, ["a"], "left"), group_model(4, ["b"], "right")]
    spikes = sorted([(1000 * k, 0) for k in range(1, 30)] + [(1000 * k + 50, 1) for k in range(1, 30)])
    readers = {}
    for unit, group in enumerate(groups):
        traces = generator.normal(0, 0.3, (40_000, 4)).astype(np.float32)
        traces[[frame for frame, of in spikes if of == unit], 1] -= 9.0
        readers[group.name] = ArrayTraces(traces, sampling_frequency=RATE)
    result = small_result([spikes], ["a", "b"], [40_000], groups=groups)
    scales = {"left": TraceScale(np.full(4, 5.0)), "right": TraceScale()}
    opened.get(write_report(result, tmp_path / "r.html", readers=readers, scales=scales).as_uri())
    wait_until(opened, "return document.documentElement.dataset.ready")
    assert label_of(opened, "pair-probe") == "The units are in different groups of channels."
    shown = "document.getElementById('pair-correlogram').data[0].y"
    label_of(opened, "pair-correlogram")
    assert opened.execute_script(f"return {shown}[55]") == 29  # all of them 5 ms later
    label_of(opened, "unit-waveforms")
    titles = []
    for index in (0, 1):
        click(opened, f"tr[data-index='{index}'] button")
        titles.append(
            opened.execute_script("return document.getElementById('unit-waveforms').layout.yaxis.title.text")
        )
    assert titles == ["channel ch1 (µV)", "channel ch1 (noise s.d.)"]
    assert console_errors(opened) == []


@pytest.mark.slow
def test_three_hundred_units_stay_under_ten_megabytes(tmp_path):
    generator = np.random.default_rng(2)
    num_units, num_channels, length = 300, 384, int(4 * RATE)
    unit_ids = list(range(num_units))
    frames = np.sort(generator.integers(500, length - 500, 700 * num_units))
    units = generator.integers(0, num_units, len(frames))
    sorting = NumpySorting.from_samples_and_labels([frames], [units], RATE, unit_ids)
    traces = generator.normal(0, 1, (length, num_channels)).astype(np.float32)
    np.subtract.at(traces, (frames, units), 8.0)
    model = spikewise.Model(
        (group_model(num_channels, unit_ids),),
        RATE,
        NetworkConfig(window_ms=2.0),
        PreprocessingConfig(),
        DetectionConfig(),
    )
    provenance = small_result([[]], ["a"], [length]).provenance
    provenance["result"]["spikes_hash"] = spikes_hash(sorting)
    result = StoredResult(sorting, model, provenance)
    readers = {"0": ArrayTraces(traces, sampling_frequency=RATE)}
    path = write_report(result, tmp_path / "r.html", readers=readers)
    assert path.stat().st_size < 10e6
