"""The page of a report in a real browser: it draws, sorts, filters, steps, and fits a telephone."""

import numpy as np
import pytest
from browser import chromium, console_errors, resize, wait_until
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

import spikewise
from spikewise import api
from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.output.report.page import write_report
from spikewise.output.result import StoredResult
from spikewise.output.store import spikes_hash

from test_report import RATE, ArrayTraces, NumpySorting, group_model, small_result  # isort: skip

NAMES = ["<b>a</b>", "b", "c", "10", "9"]
COUNTS = [40, 30, 20, 10, 5]
ALL_CHARTS = "return [...document.querySelectorAll('.chart')].map(chart => chart.id)"
SIZES = [6.0, 9.0, 12.0, 20.0, 15.0]


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
    write_report(result, path, readers=readers, truth=truth, performance=performance)
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
    assert len(charts) == 16
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


def test_a_report_without_the_recording_draws_what_it_has(opened, tmp_path):
    result, _, _ = made_result()
    opened.get(write_report(result, tmp_path / "r.html").as_uri())
    wait_until(opened, "return document.documentElement.dataset.ready")
    assert label_of(opened, "raster") == "105 spikes of 5 units over 40.0 s."
    assert label_of(opened, "unit-correlogram") == "Auto-correlogram of unit <b>a</b>."
    assert console_errors(opened) == []


@pytest.mark.slow
def test_three_hundred_units_stay_under_ten_megabytes(tmp_path):
    generator = np.random.default_rng(2)
    num_units, num_channels, length = 300, 384, int(4 * RATE)
    unit_ids = list(range(num_units))
    frames = np.sort(generator.integers(500, length - 500, 60 * num_units))
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
