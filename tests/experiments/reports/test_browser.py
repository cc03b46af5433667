"""report.html in a real browser: opens from a disk, curves zoom, a film plays, nothing is asked of a network."""

import imageio_ffmpeg
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from invented import learning
from test_collect import make

from dtune.experiments.reports.collect import load
from dtune.experiments.reports.page import write
from dtune.experiments.reports.pages import results_page, run_page
from dtune.experiments.reports.results import write_curve

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TICKS = "[...document.querySelectorAll('figure svg')[0].querySelectorAll('text')].map(t => t.textContent)"
CURVES = "document.querySelectorAll('figure svg')[0].querySelectorAll('g[clip-path] path').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def records(tmp_path):
    for method, height in (("grpo", 80.0), ("ppo", 60.0)):
        for seed in range(2):
            write_curve(learning("hopper-random-v2", method, seed, height), tmp_path / "records")
    return write(results_page(tmp_path / "records", load(tmp_path / "records")), tmp_path / "report.html")


def opened(browser, path):
    browser.asked.clear()
    browser.errors.clear()
    browser.open(path)
    return browser


def test_it_opens_from_a_disk_and_asks_for_nothing_else(browser, records):
    opened(browser, records)
    assert browser.ask("document.querySelectorAll('figure svg path').length") > 0
    assert [url for url in browser.asked if not url.startswith("data:")] == [records.resolve().as_uri()]
    assert browser.errors == []


def test_a_drag_zooms_and_a_double_click_shows_all_again(browser, records):
    opened(browser, records)
    whole = browser.ask(TICKS)
    browser.drag("figure svg", 0.3, 0.6)
    assert browser.ask("views[0].zoom !== null")
    low, high = browser.ask("views[0].zoom")
    assert 0 < low < high < browser.ask("extent(views[0].panel).high")
    assert browser.ask(TICKS) != whole
    browser.click("figure svg", times=2)
    assert browser.ask(TICKS) == whole


def test_hovering_reads_the_curves(browser, records):
    opened(browser, records)
    left, top, width, height = browser.box("figure svg")
    browser.mouse("mouseMoved", left + 0.7 * width, top + 0.5 * height)
    browser.until("!document.querySelector('.tip').hidden")
    assert browser.ask("document.querySelectorAll('figure')[0].querySelectorAll('.tip div').length") == 2
    browser.mouse("mouseMoved", 2, 2)
    browser.until("document.querySelector('.tip').hidden")


def test_a_name_in_the_legend_hides_its_curves_and_a_button_changes_the_axis(browser, records):
    opened(browser, records)
    before = browser.ask(CURVES)
    browser.click(".legend button")
    assert 0 < browser.ask(CURVES) < before
    browser.click(".legend button")
    assert browser.ask(CURVES) == before
    browser.click("button[data-axis=seconds]")
    label = browser.ask("document.querySelector('button[data-axis=seconds]').textContent")
    assert any(text.startswith(label) for text in browser.ask(TICKS))


def test_the_film_of_a_run_plays(browser, tmp_path):
    folder = make(tmp_path / "grpo/x", seed=3)
    film = imageio_ffmpeg.write_frames(str(folder / "video.mp4"), (64, 64), fps=25)
    film.send(None)
    for number in range(25):
        film.send(np.full((64, 64, 3), 10 * number, dtype=np.uint8))
    film.close()
    opened(browser, write(run_page(folder), tmp_path / "report.html"))
    browser.ask("document.querySelector('video').play()")
    browser.until("document.querySelector('video').currentTime > 0.3")
    assert browser.ask("document.querySelector('video').videoWidth") == 64
    assert browser.errors == []
