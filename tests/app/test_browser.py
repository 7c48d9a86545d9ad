"""The page in Chromium, driven by Selenium; ``make test-app`` has both.

Reported as skipped elsewhere, and failing, rather than skipping, if ``VHEAT_TEST_APP`` is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.deploy.handmade import write_export

ROOT = Path(__file__).parents[2]
NEEDED = bool(os.environ.get("VHEAT_TEST_APP"))
try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    if NEEDED:
        raise
    pytest.skip("Selenium is not installed: make test-app", allow_module_level=True)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not NEEDED and not (CHROMIUM and DRIVER):
    pytest.skip("Chromium and its driver are not installed: make test-app", allow_module_level=True)

pytestmark = pytest.mark.slow

CONFIG = "configs/demo.yml"
SMALL = ["model.channels=16", "model.aux_channels=8", "model.backbone.embed_dim=8"]
LIMIT = 100 * 100
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,1400",
)  # fmt: skip
PATIENCE = 300  # seconds for an answer of a busy machine

# A drop, as the browser makes it of a file that is dragged into the page.
DROP = """
const [bytes, target] = [Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), document.getElementById("drop")];
const carried = new DataTransfer();
carried.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
target.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
"""


@contextlib.contextmanager
def serving(*options):
    """The command runs; its address. It ends by SIGTERM, and leaves no file behind."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder}
        command = [sys.executable, "-m", "paddle_vheat.app", "--port", "0", *options]
        program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            found = None
            while found is None:
                line = program.stdout.readline()
                assert line, "the program ended before it gave its address"
                found = re.match(r"http://127\.0\.0\.1:\d+/", line)
            yield found[0]
        finally:
            program.send_signal(signal.SIGTERM)
            assert program.wait(60) == 0
        assert [path for path in Path(folder).rglob("*") if "paddle_vheat" in path.name] == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from paddle_vheat._paddle import paddle
    from paddle_vheat.config import load_config
    from paddle_vheat.tasks import find_task
    from paddle_vheat.weights.loading import save_weights

    paddle.seed(1)
    config = load_config(CONFIG, SMALL)
    path = tmp_path_factory.mktemp("weights") / "model.pdparams"
    task = find_task(config, CONFIG)[1].make_task(config, CONFIG, None, None)
    model = task.build_model(pretrained=False)
    for name, value in model.state_dict().items():
        if name.endswith("to_k.bias"):
            value.set_value(paddle.full_like(value, 1.0))  # fresh weights hardly conduct
    save_weights(model, path)
    return path


@pytest.fixture(scope="module")
def page(checkpoint):
    """The address of the page of a trained model."""
    given = ["--config", CONFIG, "--model_path", str(checkpoint), "--max_pixels", str(LIMIT), "--opts", *SMALL]
    with serving(*given) as address:
        yield address


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver):
    """The browser for one test, after which all that it has asked for must have been on this computer."""
    driver.get("about:blank")
    for log in ("performance", "browser"):
        driver.get_log(log)  # which empties it
    yield driver
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    stopped = {e["params"]["requestId"] for e in events if e.get("params", {}).get("blockedReason") == "csp"}
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in sent if one["requestId"] not in stopped]
    fetched = {url[:100] for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert fetched, "the log of requests is empty"
    assert {urlsplit(url).hostname for url in fetched} == {"127.0.0.1"}, fetched


def picture(path, height=64, width=96):
    """A generated picture in a file."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(path)
    return str(path)


class Page:
    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self["title"].text)

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def wait(self, condition):
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05).until(lambda _: condition())

    def loaded(self, name):
        """The address of an image that is shown and decoded; False if there is none."""
        image = self[name]
        real = self.driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", image)
        return image.is_displayed() and real and image.get_attribute("src")

    def upload(self, path):
        self["file"].send_keys(str(path))

    def error(self):
        self.wait(lambda: self["error"].is_displayed())
        assert not self["shown"].is_displayed()
        return self["error"].text

    def heat(self, numbers):
        """The heat's picture, as soon as its numbers begin so; a slider passes stops on its way."""
        self.wait(lambda: self["heat-numbers"].text.startswith(numbers))
        return self["veil"].get_attribute("src")

    def slide(self, name, value):
        """A slider, by the keys that a user would press."""
        from selenium.webdriver.common.keys import Keys

        steps = value - int(self[name].get_attribute("value"))
        self[name].send_keys(*([Keys.RIGHT if steps > 0 else Keys.LEFT] * abs(steps)))

    def click(self, y, x):
        """The map at shares of its height and width."""
        from selenium.webdriver import ActionChains

        map = self["map"]
        shift = round((x - 0.5) * map.size["width"]), round((y - 0.5) * map.size["height"])
        ActionChains(self.driver).move_to_element_with_offset(map, *shift).click().perform()


def test_a_picture_is_chosen_and_its_prediction_appears(browser, page, tmp_path):
    shown = Page(browser, page)
    assert shown["title"].text == "demo"
    assert not shown["shown"].is_displayed()
    shown.upload(picture(tmp_path / "street.png"))
    over = shown.wait(lambda: shown.loaded("shown"))
    assert shown.loaded("chosen")
    assert shown.loaded("under")  # below the heat too
    assert re.search(r"\d %", shown["legend"].text)
    shown["tabs"].find_elements(By.TAG_NAME, "button")[1].click()
    assert shown.wait(lambda: shown.loaded("shown")) != over
    assert not shown["error"].is_displayed()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_picture_is_dropped(browser, page, tmp_path):
    import base64

    shown = Page(browser, page)
    data = Path(picture(tmp_path / "street.png")).read_bytes()
    browser.execute_script(DROP, base64.b64encode(data).decode())
    shown.wait(lambda: shown.loaded("shown"))
    assert shown["status"].text == "dropped.png"


def test_heat_follows_the_place_the_stage_and_the_time(browser, page, tmp_path):
    shown = Page(browser, page)
    shown.wait(lambda: shown.loaded("veil"))
    seen = {shown.heat("From patch (16, 32), t = 1:")}  # the centre of 32 x 64
    shown.upload(picture(tmp_path / "street.png"))
    for name in ("under", "chosen", "shown"):  # each moves what is below it
        shown.wait(lambda name=name: shown.loaded(name))
    for act, text in (
        (lambda: shown.click(0.26, 0.76), "From patch (8, 48), t = 1:"),
        (lambda: shown.slide("time", 7), "From patch (8, 48), t = 4:"),
        (lambda: shown.slide("stage", 2), "From patch (4, 24), t = 4:"),
        (lambda: shown.click(0.99, 0.01), "From patch (15, 0), t = 4:"),
    ):
        k = shown["k"].get_attribute("src")
        act()
        source = shown.heat(text)
        assert "sum 1." in shown["heat-numbers"].text
        assert source not in seen
        seen.add(source)
        assert (shown["k"].get_attribute("src") != k) == (text == "From patch (4, 24), t = 4:")
    assert shown["stage-value"].text == "2 of 4"
    assert shown.loaded("k")
    shown["play"].click()
    shown.wait(lambda: "t = 64:" in shown["heat-numbers"].text)
    shown.wait(lambda: shown["play"].text == "Let time run")


def test_a_block_is_chosen_within_its_stage(browser, page):
    shown = Page(browser, page)
    shown.wait(lambda: shown.loaded("veil"))
    assert not shown["block"].is_enabled()
    shown.slide("stage", 3)
    shown.wait(lambda: shown["block-value"].text == "2 of 2")
    last = shown.heat("From patch (4, 8),")  # of 8 x 16
    shown.slide("block", 1)
    shown.wait(lambda: shown["veil"].get_attribute("src") != last)
    assert shown["block-value"].text == "1 of 2"


def test_what_is_not_taken_is_said_on_the_page(browser, page, tmp_path):
    shown = Page(browser, page)
    shown.upload(picture(tmp_path / "large.png", 101, 100))
    text = f"the picture is too large: it has 100 x 101 = 10100 pixels, and at most {LIMIT} are taken (--max_pixels)"
    assert shown.error() == text
    damaged = tmp_path / "damaged.png"
    whole = Path(picture(tmp_path / "street.png")).read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    shown.upload(damaged)
    shown.wait(lambda: "cannot" in shown["error"].text)
    assert "the picture" in shown.error()
    assert str(tmp_path) not in shown.error()
    huge = tmp_path / "huge.png"
    huge.write_bytes(bytes((32 << 20) + 1))
    shown.upload(huge)
    shown.wait(lambda: "33554433 bytes" in shown["error"].text)
    assert shown.error() == "the file is too large: it has 33554433 bytes, and at most 33554432 are taken"
    shown.upload(tmp_path / "street.png")
    shown.wait(lambda: shown.loaded("shown"))
    assert not shown["error"].is_displayed()


def test_the_browser_does_not_let_the_page_send_elsewhere(browser, page):
    Page(browser, page)
    script = "const done = arguments[0]; fetch('http://localhost:9/x').then(() => done('sent'), (e) => done(String(e)))"
    listening = "document.addEventListener('securitypolicyviolation', (e) => { window.refused = e.effectiveDirective })"
    browser.execute_script(listening)
    assert "Failed to fetch" in browser.execute_async_script(script)
    assert browser.execute_script("return window.refused") == "connect-src"


def test_an_exported_model_predicts_and_says_why_it_has_no_heat(browser, tmp_path):
    folder = write_export(tmp_path / "model", (64, 128), "argmax")
    with serving("--exported", str(folder)) as address:
        shown = Page(browser, address)
        assert not shown["heat"].is_displayed()
        assert "An exported model is a graph without layers" in shown["why"].text
        shown.upload(picture(tmp_path / "street.png"))
        shown.wait(lambda: shown.loaded("shown"))
        assert "class " in shown["legend"].text
