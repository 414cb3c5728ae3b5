"""The page in a real browser (headless Chromium), against the API over real HTTP and a real release."""

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from data.settings import read_section
from modeling.objectives_settings import ObjectivesSettings
from modeling.settings import ConditionSettings
from serve.answer import Answer, Query, Refusal
from serve.api import create_api
from serve.build import run as build_release
from serve.description import Description, describe
from serve.engine import Engine
from serve.histories.store import open_histories
from serve.instructions import Unanswerable
from serve.settings import ServeSettings
from tests.ports import free_port
from tests.small_world import START, item_id, write_artifact, write_dataset

TOKEN = "0123456789abcdef"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver: install Debian's chromium-driver"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with page_of(tmp_path_factory.mktemp("page"), condition=ConditionSettings()) as address:
        yield address


@contextmanager
def page_of(place: Path, **model: Any) -> Iterator[str]:
    """The address of a page over a release whose model has these settings."""
    dataset = write_dataset(place / "dataset")
    artifact = write_artifact(place / "artifact", dataset, **model)
    build_release(str(artifact.directory), str(place / "release"), {}, dataset=str(dataset.directory))
    engine = Engine.open(place / "release")
    (place / "tokens").write_text(f"browser {TOKEN}\n")
    recipe = {
        "access": {"tokens_file": str(place / "tokens")},
        "histories": {"kind": "sqlite", "path": str(place / "histories.sqlite")},
    }
    settings = read_section({"serve": recipe}, "serve", ServeSettings)

    async def ask(query: Query) -> Answer | Refusal:
        try:
            return (await asyncio.to_thread(engine.answer, [query]))[0]
        except Unanswerable as error:
            return Refusal(error.field, error.message)

    async def described() -> Description:
        return describe(engine)

    assert settings.histories is not None
    api = create_api(ask, settings, open_histories(settings.histories), describe=described)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield found
    found.quit()


def of(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def wait_for(browser: webdriver.Chrome, selector: str, count: int = 1) -> list[WebElement]:
    def found(_: webdriver.Chrome) -> list[WebElement] | bool:
        elements = browser.find_elements(By.CSS_SELECTOR, selector)
        return len(elements) == count and elements

    return WebDriverWait(browser, 30).until(found)


def open_page(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    if of(browser, "#access").get_attribute("open") is None:
        of(browser, "#access summary").click()
    of(browser, "#token").clear()
    of(browser, "#token").send_keys(TOKEN, Keys.TAB)
    WebDriverWait(browser, 30).until(lambda _: of(browser, "#release").text != "…")


def ask(browser: webdriver.Chrome, answers: int) -> list[WebElement]:
    browser.execute_script("document.getElementById('answers').replaceChildren()")
    of(browser, "#ask").click()
    return wait_for(browser, "article", answers)


def ids(article: WebElement) -> list[str]:
    return [element.text for element in article.find_elements(By.CSS_SELECTOR, ".id")]


def test_a_conditioned_answer_stands_beside_the_one_without(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    WebDriverWait(browser, 30).until(lambda _: "status 401" in of(browser, "#problem").text)
    open_page(browser, url)
    assert "example 1" in of(browser, "#source").text
    assert of(browser, "#titles li").text.startswith("Title ")
    # By keyboard alone from here: the button, the name, the weight, the box, the answer.
    of(browser, "#add").send_keys(Keys.ENTER)
    browser.switch_to.active_element.send_keys("even", Keys.TAB, Keys.TAB, Keys.SPACE)
    of(browser, "#k").send_keys(Keys.ENTER)
    with_condition, without = wait_for(browser, "article", 2)
    assert "With conditions" in with_condition.text
    numbers = [int(item[1:]) for item in ids(with_condition)]
    assert len(numbers) == 10
    assert all(number % 2 == 0 for number in numbers)
    assert any(int(item[1:]) % 2 for item in ids(without))
    assert "Title " in with_condition.find_element(By.CSS_SELECTOR, "li").text
    facts = with_condition.find_element(By.CSS_SELECTOR, ".facts").text
    assert f"release {of(browser, '#release').text}" in facts
    assert " ms here" in facts
    marked = {
        item.find_element(By.CSS_SELECTOR, ".id").text
        for item in with_condition.find_elements(By.CSS_SELECTOR, "li.other")
    }
    assert marked == set(ids(with_condition)) - set(ids(without))
    # Removing the condition leaves one answer.
    of(browser, ".remove").click()
    assert [article.find_element(By.TAG_NAME, "h2").text for article in ask(browser, 1)] == ["Without conditions"]


def test_a_pasted_history_a_stored_user_and_a_refusal(browser: webdriver.Chrome, url: str) -> None:
    open_page(browser, url)
    events = ", ".join(f'{{"item_id": "{item_id(row)}", "timestamp": {START + row}}}' for row in (3, 4, 5))
    history = of(browser, "#history")
    history.clear()
    history.send_keys(f"[{events}]")
    [pasted] = ask(browser, 1)
    assert "3 events used" in pasted.text
    history.clear()
    history.send_keys(item_id(3))
    of(browser, "#ask").click()
    WebDriverWait(browser, 30).until(lambda _: "history.0.timestamp" in of(browser, "#problem").text)
    history.clear()
    history.send_keys("[1, 2")
    of(browser, "#ask").click()
    WebDriverWait(browser, 30).until(lambda _: "not a JSON list" in of(browser, "#problem").text)
    assert not of(browser, "#user").is_displayed()
    of(browser, "#source").send_keys("a stored user")
    assert not history.is_displayed()
    of(browser, "#user").send_keys("nobody")
    [stored] = ask(browser, 1)
    assert "fallback: popularity" in stored.text


def test_it_fits_a_phone_and_breaks_no_policy(browser: webdriver.Chrome, url: str) -> None:
    browser.set_window_size(360, 740)
    open_page(browser, url)
    of(browser, "#add").click()
    of(browser, ".name").send_keys("odd")
    ask(browser, 2)
    width, shown = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= shown
    unlabelled = (
        "return [...document.querySelectorAll('input, select, textarea')].filter((e) => !e.labels.length).length"
    )
    assert browser.execute_script(unlabelled) == 0
    serious = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in serious if " 401 " not in line and " 422 " not in line] == []
    if place := os.environ.get("FARSIGHT_SCREENSHOTS"):
        browser.save_screenshot(str(Path(place) / "phone.png"))


def test_the_objectives_of_a_release_have_weights_and_another_release_has_no_field_for_them(
    browser: webdriver.Chrome, url: str, tmp_path: Path
) -> None:
    open_page(browser, url)
    assert not of(browser, "#objectives").is_displayed()
    stated = ObjectivesSettings(actions={"click": ("click",), "conversion": ("like",)})
    with page_of(tmp_path, objectives=stated) as address:
        open_page(browser, address)
        fields = wait_for(browser, "#weights input", 3)
        assert [field.get_attribute("name") for field in fields] == ["exposure", "click", "conversion"]
        [own] = ask(browser, 1)
        own_ids = ids(own)
        fields[0].send_keys("1")
        [exposure] = ask(browser, 1)
        assert ids(exposure) != own_ids
        fields[0].clear()
        fields[1].send_keys("0")
        of(browser, "#ask").click()
        WebDriverWait(browser, 30).until(lambda _: "found no weight above 0" in of(browser, "#problem").text)
