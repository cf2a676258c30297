"""A browser for tests: fixtures, and words for what a person does on the page.

A test module takes the fixtures by ``pytest_plugins = ["browsing"]``. It has imported the words by
then, hence PYTEST_DONT_REWRITE.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from conftest import Server, missing, tested
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    expect,
    sync_playwright,
)

on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
XSS = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Browser]:
    """Yield the browser of this file's tests on a database.

    It needs ``server`` only to be closed before it: asyncio.run, which ends some databases, does
    not work beside Playwright.
    """
    program = shutil.which("chromium")
    if program is None:
        why = "no chromium here: install Debian's chromium"
        missing["the page, in a browser"] = why
        if os.environ.get("REQUIRE_ALL_DATABASES"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        tested["browser"] = f"Chromium {browser.version}"
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser, server: Server) -> Iterator[Callable[..., Page]]:
    """Return what opens the page in a window of its own; see that nothing went wrong in any."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def on_dialog(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.accept()

    def on_console(message: ConsoleMessage) -> None:
        # The browser writes down each answer that is an error. The page's own errors, and what its
        # policy forbids, begin with other words.
        if not message.text.startswith("Failed to load resource: "):
            wrong.append(f"{message.type}: {message.text}")

    def listen(page: Page) -> None:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", on_dialog)
        page.on("console", on_console)

    def open_page(url: str = server.url, **options: Any) -> Page:
        context = browser.new_context(
            **{"base_url": url, "reduced_motion": "reduce", "locale": "en", **options}
        )
        context.set_default_timeout(10_000)
        contexts.append(context)
        context.on("page", listen)
        page = context.new_page()
        page.goto("/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == [], wrong


@pytest.fixture
def page(client: httpx.Client, new_page: Callable[..., Page]) -> Page:
    """Return the page of an app without users."""
    page = new_page()
    expect(page.locator("#nobody")).to_have_text("No people yet.")
    return page


@pytest.fixture
def search_by_q(openapi: dict[str, Any]) -> None:
    """Skip a test that needs the API's search, until the API has it."""
    parameters = openapi["paths"]["/users/"]["get"]["parameters"]
    if not any(parameter["name"] == "q" for parameter in parameters):
        pytest.skip("GET /users/ has no q yet")


def rows(page: Page) -> Locator:
    """Return the rows of the list that can be seen."""
    return page.locator("[data-id]:not([hidden])")


def shown(page: Page) -> Locator:
    """Return the names in the list."""
    return page.locator("[data-id]:not([hidden]) .name")


def act(page: Page, action: str, name: str) -> Locator:
    """Return the button of an action on the row of this name."""
    return page.get_by_role("button", name=re.compile(f"^{action} {re.escape(name)}, "))


def search(page: Page, text: str) -> None:
    """Type into the search."""
    page.get_by_role("searchbox").fill(text)


def button(page: Page, name: str) -> Locator:
    """Return the button of this name."""
    return page.get_by_role("button", name=name, exact=True)


def field(page: Page, label: str) -> Locator:
    """Return the field of this label in the editor."""
    return page.get_by_role("dialog").get_by_label(label, exact=True)


def fill(page: Page, name: str, email: str) -> None:
    """Type into the editor."""
    field(page, "Name").fill(name)
    field(page, "Email").fill(email)


def save(page: Page) -> None:
    """Press Save, and wait until it is done."""
    button(page, "Save").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def choose_file(page: Page, data: str | bytes, name: str = "list.csv") -> None:
    """Open the import, and choose a file with this text."""
    button(page, "Import").click()
    data = data.encode() if isinstance(data, str) else data
    page.locator("#file").set_input_files({"name": name, "mimeType": "text/csv", "buffer": data})


def check_file(page: Page, data: str | bytes) -> None:
    """Choose a file, and have it checked as it is guessed."""
    choose_file(page, data)
    page.get_by_role("button", name=re.compile("^Check ")).click()


def figures(page: Page) -> list[str]:
    """Return the figures of the import, when it has some to show."""
    expect(page.locator(".figures")).to_be_visible(timeout=30_000)
    return page.locator(".figures li").all_text_contents()


def notes(page: Page) -> list[list[str]]:
    """Return the line and the note of each row that the import says something about."""
    found = page.locator("tbody tr").all()
    return [row.locator("td:first-child, td:last-child").all_text_contents() for row in found]
