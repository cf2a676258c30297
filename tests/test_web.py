"""The page at /, used as people use it: in a real browser, with mouse, keyboard and finger.

What is about the page alone runs on SQLite, and one walk through all of it on every database.
"""

import csv
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Server, missing, quick_on, serve, tested, wait_until
from databases import BACKENDS, Database, free_port
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
from sqlalchemy.engine import make_url
from test_contract import User, add, names, read_all
from test_start import relay

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
    assert wrong == []


@pytest.fixture
def page(client: httpx.Client, new_page: Callable[..., Page]) -> Page:
    """Return the page of an app without users."""
    page = new_page()
    expect(page.locator("#nobody")).to_have_text(
        "Nobody is here yet. Add a person, or import a list."
    )
    return page


def rows(page: Page) -> Locator:
    """Return the rows of the list that can be seen."""
    return page.locator("#people li:not([hidden])")


def shown(page: Page) -> list[str]:
    """Return the names in the list."""
    return page.locator("#people li:not([hidden]) b").all_text_contents()


def search(page: Page, text: str) -> None:
    """Type into the search."""
    page.get_by_role("searchbox").fill(text)


def button(page: Page, name: str) -> Locator:
    """Return the button of this name."""
    return page.get_by_role("button", name=name, exact=True)


def fill(page: Page, name: str, email: str) -> None:
    """Type into the editor."""
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Email", exact=True).fill(email)


def save(page: Page) -> None:
    """Press Save, and wait until it is done."""
    button(page, "Save").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def choose_file(page: Page, text: str | bytes, name: str = "list.csv") -> None:
    """Open the import, and choose a file with this text."""
    button(page, "Import").click()
    data = text.encode() if isinstance(text, str) else text
    page.locator("#file").set_input_files({"name": name, "mimeType": "text/csv", "buffer": data})


def figures(page: Page) -> list[str]:
    """Return the figures of the import, when it has some to show."""
    expect(page.locator(".figures")).to_be_visible(timeout=30_000)
    return page.locator(".figures li").all_text_contents()


def reasons(page: Page) -> list[list[str]]:
    """Return the line and the reason of each person whom the import leaves out."""
    found = page.locator("tbody tr").all()
    return [row.locator("td:first-child, td:last-child").all_text_contents() for row in found]


# What is served


@on_sqlite
def test_first_view_is_small_and_all_from_here(
    client: httpx.Client, server: Server, new_page: Callable[..., Page]
) -> None:
    requests: list[str] = []
    page = new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.reload()
    expect(page.locator("#nobody")).not_to_be_empty()
    assert all(url.startswith(server.url) for url in requests), requests
    files = [url.removeprefix(server.url) for url in requests if "/users/" not in url]
    # A browser without a head asks for no icon.
    files = sorted({*files, "/icon.svg"})
    assert files == ["/", "/icon.svg", "/roster.css", "/roster.js"]
    assert sum(len(client.get(file).content) for file in files) <= 20_000


@on_sqlite
@pytest.mark.parametrize(
    ("method", "path", "status", "cache"),
    [
        *(("GET", path, 200, "no-cache") for path in ("/", "/roster.js", "/roster.css")),
        *(("GET", path, 200, "no-store") for path in ("/users/", "/users/export", "/livez")),
        *(("GET", path, 200, "no-store") for path in ("/docs", "/openapi.json")),
        ("GET", "/nowhere", 404, "no-store"),
        ("GET", "/users/1", 404, "no-store"),
        ("GET", "/users/x", 422, "no-store"),
        ("PUT", "/users/", 405, "no-store"),
        ("GET", "/users", 307, "no-store"),
    ],
)
def test_every_answer_tells_the_browser_to_be_careful(
    client: httpx.Client, method: str, path: str, status: int, cache: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["cache-control"]) == (status, cache)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert ("unsafe" in policy) == (path == "/docs")


def test_answer_to_a_bug_has_the_headers_too(tmp_path: Path) -> None:
    with serve(f"sqlite:///{tmp_path}/roster.db", tmp_path) as server:
        with sqlite3.connect(tmp_path / "roster.db") as connection:
            connection.execute("drop table users")
        connection.close()
        response = httpx.get(f"{server.url}/users/")
        assert (response.status_code, response.headers["cache-control"]) == (500, "no-store")
        assert response.headers["content-security-policy"].startswith("default-src 'self'")


@on_sqlite
def test_docs_need_no_other_site_and_their_examples_run(
    client: httpx.Client, new_page: Callable[..., Page]
) -> None:
    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/docs")
    for operation, status in (("create_user_users", 201), ("read_users_users", 200)):
        opened = page.locator(f"[id^=operations-users-{operation}]").first
        opened.click()
        opened.get_by_role("button", name="Try it out").click()
        opened.get_by_role("button", name="Execute").click()
        answered = opened.locator(".live-responses-table .response-col_status")
        expect(answered.last).to_contain_text(str(status))
    assert names(read_all(client)) == ["Grace Hopper"]
    assert [url for url in asked if not url.startswith(("data:", str(client.base_url)))] == []


@on_sqlite
def test_page_hides_no_route_and_shows_no_other_file(client: httpx.Client) -> None:
    assert client.get("/users").headers["location"].endswith("/users/")
    assert client.put("/").headers["allow"] == "GET, HEAD"
    assert client.head("/").status_code == 200
    for path in ("/app.py", "/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/web/index.html"):
        assert client.get(path).status_code == 404, path
    documented = client.get("/openapi.json").json()["paths"]
    assert not any(path == "/" or "." in path for path in documented)


# The list


@on_sqlite
def test_search_as_you_type_finds_names_that_begin_so_and_whole_addresses(
    client: httpx.Client, page: Page
) -> None:
    for name in ("Ada Lovelace", "Adam Smith", "Grace Hopper"):
        add(client, name, f"{name.split()[0]}@example.com")
    page.get_by_role("searchbox").press_sequentially("ADA")
    expect(rows(page)).to_have_count(2)
    assert shown(page) == ["Ada Lovelace", "Adam Smith"]
    expect(page.locator("#news")).to_have_text("2 people")
    page.get_by_role("searchbox").press_sequentially(" l")
    expect(rows(page)).to_have_count(1)
    search(page, "grace@")
    expect(page.locator("#nobody")).to_have_text("This is not a whole address yet.")
    search(page, "GRACE@example.com")
    expect(rows(page)).to_have_text(re.compile("Grace Hopper"))
    search(page, "nobody")
    expect(page.locator("#nobody")).to_have_text("Nobody found.")


@on_sqlite
def test_list_has_four_orders(client: httpx.Client, page: Page) -> None:
    for name in ("Bob", "ada", "Zoë"):
        add(client, name)
    for order, expected in {
        "Newest first": ["Zoë", "ada", "Bob"],
        "Oldest first": ["Bob", "ada", "Zoë"],
        "A to Z": ["ada", "Bob", "Zoë"],
        "Z to A": ["Zoë", "Bob", "ada"],
    }.items():
        page.get_by_label("Order").select_option(order)
        expect(page.locator("#people b")).to_have_text(expected)


@on_sqlite
def test_more_come_as_one_scrolls_and_all_are_counted_on_demand(
    client: httpx.Client, page: Page
) -> None:
    new = [{"name": f"n{i:03}", "email": f"{i}@example.com"} for i in range(230)]
    client.post("/users/bulk", json=new)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(rows(page)).to_have_count(50)
    assert not any("total" in url for url in asked)
    button(page, "Count all").click()
    expect(page.locator("#shown")).to_have_text("230 people in all")
    while len(shown(page)) < 230:
        before = len(shown(page))
        page.mouse.wheel(0, 100_000)
        expect(rows(page).nth(before)).to_be_attached()
    assert shown(page) == [user["name"] for user in new]
    assert sum("cursor=" in url for url in asked) == 4
    expect(button(page, "Show more")).to_be_hidden()


# Adding and editing


@on_sqlite
def test_adding_with_the_keyboard_alone(client: httpx.Client, page: Page) -> None:
    for _ in ("Import", "Export", "Add person"):
        page.keyboard.press("Tab")
    expect(button(page, "Add person")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Add a person")).to_be_visible()
    page.keyboard.type("Ada Lovelace")
    page.keyboard.press("Tab")
    page.keyboard.type("ada@example.com")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(rows(page)).to_be_focused()
    expect(page.locator("#news")).to_have_text("Ada Lovelace is saved.")
    page.keyboard.press("Tab")
    expect(button(page, "Edit Ada Lovelace")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type(" King")
    page.keyboard.press("Escape")
    expect(page.get_by_text("This is not saved. Press Escape once more")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#people b")).to_have_text(["Ada Lovelace King"])
    assert names(read_all(client)) == ["Ada Lovelace King"]


@on_sqlite
def test_what_is_wrong_stands_at_its_field_in_words(client: httpx.Client, page: Page) -> None:
    add(client, "Grace", "grace@example.com")
    button(page, "Add person").click()
    name, email = page.get_by_label("Name", exact=True), page.get_by_label("Email", exact=True)
    for new, said in {
        ("", "ada"): (
            "Please write a name.",
            "This is not an address. An email address must have an @-sign.",
        ),
        ("x" * 101, "a@example.com"): ("A name has at most 100 characters.", ""),
        ("a\u0007", "a@example.com"): (
            "There are characters in it that cannot be seen. Please type it anew.",
            "",
        ),
        ("Ada", "a" * 250 + "@example.com"): ("", "An address has at most 254 characters."),
        ("Ada", "GRACE@example.com"): ("", "Somebody has this address already."),
    }.items():
        fill(page, *new)
        button(page, "Save").click()
        expect(page.locator("#name-problem")).to_have_text(said[0])
        expect(page.locator("#email-problem")).to_have_text(said[1])
        expect(name if said[0] else email).to_be_focused()
        for field, text, problem in zip((name, email), new, said, strict=True):
            expect(field).to_have_value(text)
            expect(field).to_have_attribute("aria-invalid", str(bool(problem)).lower())
            expect(field).to_have_accessible_description(problem)
    assert len(read_all(client)) == 1


@on_sqlite
def test_edit_sends_what_was_changed_and_the_version_seen(client: httpx.Client, page: Page) -> None:
    user = add(client, "Ada")
    page.reload()
    button(page, "Edit Ada").click()
    page.get_by_label("Name", exact=True).fill("Ada King")
    with page.expect_request("**/users/*") as sent:
        save(page)
    assert sent.value.post_data_json == {"name": "Ada King"}
    assert sent.value.headers["if-match"] == '"1"'
    expect(page.locator("#people b")).to_have_text(["Ada King"])
    assert client.get(f"/users/{user['id']}").json()["version"] == 2


@pytest.fixture
def conflict(client: httpx.Client, page: Page) -> User:
    """Make a person and somebody else edit one user; return it as the other left it."""
    user = add(client, "Ada", "ada@example.com")
    page.reload()
    button(page, "Edit Ada").click()
    page.get_by_label("Name", exact=True).fill("Ada Mine")
    theirs = {"name": f"Ada {XSS}", "email": "theirs@example.com"}
    changed: User = client.patch(f"/users/{user['id']}", json=theirs).json()
    button(page, "Save").click()
    expect(page.get_by_text("Somebody else has changed this person meanwhile.")).to_be_focused()
    return changed


@on_sqlite
def test_conflict_shows_yours_beside_theirs_and_stores_what_is_chosen(
    client: httpx.Client, page: Page, conflict: User
) -> None:
    for group, options in {
        "Name": ["Yours Ada Mine", f"Theirs {conflict['name']}"],
        "Email": ["Yours ada@example.com", "Theirs theirs@example.com"],
    }.items():
        radios = page.get_by_role("group", name=group).get_by_role("radio")
        for radio, name in zip(radios.all(), options, strict=True):
            expect(radio).to_have_accessible_name(name)
    # What only they have changed is theirs unless one says otherwise.
    expect(page.get_by_role("radio", name="Yours Ada Mine")).to_be_checked()
    expect(page.get_by_role("radio", name="Theirs theirs@")).to_be_checked()
    with page.expect_request("**/users/*") as sent:
        save(page)
    assert sent.value.headers["if-match"] == '"2"'
    (user,) = read_all(client)
    assert (user["name"], user["email"], user["version"]) == ("Ada Mine", "theirs@example.com", 3)


@on_sqlite
def test_conflict_can_be_left_as_theirs(client: httpx.Client, page: Page, conflict: User) -> None:
    page.get_by_role("radio", name="Theirs Ada").check()
    save(page)
    assert read_all(client) == [conflict]
    expect(page.locator("#people b")).to_have_text([conflict["name"]])


@on_sqlite
def test_edit_of_somebody_deleted_meanwhile_loses_nothing(client: httpx.Client, page: Page) -> None:
    user = add(client, "Ada", "ada@example.com")
    page.reload()
    button(page, "Edit Ada").click()
    page.get_by_label("Name", exact=True).fill("Ada King")
    client.delete(f"/users/{user['id']}")
    button(page, "Save").click()
    expect(page.get_by_role("alert")).to_contain_text("deleted this person meanwhile. Save adds")
    expect(rows(page)).to_have_count(0)
    save(page)
    assert [(u["name"], u["email"]) for u in read_all(client)] == [("Ada King", "ada@example.com")]


# Deleting


@on_sqlite
def test_undo_of_a_delete_loses_nothing(client: httpx.Client, page: Page) -> None:
    users = [add(client, name) for name in ("Ada", "Bob", "Cem")]
    page.reload()
    button(page, "Delete Bob").click()
    expect(rows(page)).to_have_count(2)
    expect(rows(page).nth(1)).to_be_focused()
    expect(page.locator("#news")).to_have_text("Bob is deleted. Control Z undoes it.")
    page.get_by_label("Order").select_option("Z to A")
    expect(page.locator("#people b")).to_have_text(["Cem", "Bob", "Ada"])
    expect(rows(page)).to_have_count(2)
    button(page, "Undo: keep Bob").click()
    expect(rows(page)).to_have_count(3)
    button(page, "Delete Cem").click()
    expect(rows(page)).to_have_count(2)
    page.keyboard.press("Control+z")
    expect(rows(page).first).to_be_focused()
    assert read_all(client) == users


@on_sqlite
def test_delete_is_done_when_the_time_to_undo_is_over(client: httpx.Client, page: Page) -> None:
    users = [add(client, name) for name in ("Ada", "Bob")]
    page.clock.install()
    page.reload()
    button(page, "Delete Ada").click()
    page.locator("#undo li").hover()
    page.clock.run_for(60_000)  # who points at it has all the time it takes
    expect(page.locator("#undo li")).to_be_visible()
    page.mouse.move(0, 0)
    with page.expect_request("**/users/*") as sent:
        page.clock.run_for(9_000)
    assert (sent.value.method, sent.value.headers["if-match"]) == ("DELETE", '"1"')
    expect(page.locator("#undo li")).to_have_count(0)
    expect(page.locator("#people li")).to_have_count(1)
    assert read_all(client) == users[1:]


@on_sqlite
def test_delete_that_is_on_its_way_cannot_be_undone(client: httpx.Client, page: Page) -> None:
    add(client, "Ada")
    page.clock.install()
    page.reload()
    button(page, "Delete Ada").click()
    expect(page.locator("#undo li")).to_be_visible()
    page.context.set_offline(True)
    page.clock.run_for(9_000)
    expect(page.locator("body > .problem")).to_contain_text("No connection")
    page.keyboard.press("Control+z")
    expect(page.locator("#news")).not_to_have_text("Ada is kept.")
    expect(rows(page)).to_have_count(0)
    page.context.set_offline(False)
    page.clock.run_for(9_000)
    wait_until(lambda: read_all(client) == [], seconds=5)


@on_sqlite
def test_delete_is_done_when_the_page_is_left(client: httpx.Client, page: Page) -> None:
    add(client, "Ada")
    page.reload()
    button(page, "Delete Ada").click()
    expect(rows(page)).to_have_count(0)
    assert len(read_all(client)) == 1
    page.goto("about:blank")
    wait_until(lambda: read_all(client) == [], seconds=5)


@on_sqlite
def test_who_was_changed_meanwhile_is_not_deleted(client: httpx.Client, page: Page) -> None:
    user = add(client, "Ada")
    page.clock.install()
    page.reload()
    button(page, "Delete Ada").click()
    client.patch(f"/users/{user['id']}", json={"name": "Ada King"})
    expect(page.locator("#undo li")).to_be_visible()
    page.clock.run_for(9_000)
    expect(page.locator("#undo")).to_contain_text("Ada is not deleted. Somebody else has changed")
    expect(rows(page)).to_have_count(1)
    assert names(read_all(client)) == ["Ada King"]


@on_sqlite
def test_address_of_who_is_being_deleted_is_free_at_once(client: httpx.Client, page: Page) -> None:
    add(client, "Ada", "ada@example.com")
    page.reload()
    button(page, "Delete Ada").click()
    button(page, "Add person").click()
    fill(page, "Ada Two", "ADA@example.com")
    save(page)
    assert names(read_all(client)) == ["Ada Two"]


# A connection that is lost


@on_sqlite
def test_lost_connection_is_said_and_healed_and_nothing_typed_is_lost(
    client: httpx.Client, page: Page
) -> None:
    page.context.set_offline(True)
    button(page, "Add person").click()  # its module is not loaded yet
    expect(page.locator("body > .problem")).to_have_text("No connection to Roster. Trying again.")
    page.context.set_offline(False)
    fill(page, "Ada", "ada@example.com")
    page.context.set_offline(True)
    button(page, "Save").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("status")).to_contain_text("No connection to Roster. Trying again;")
    expect(page.get_by_label("Name", exact=True)).to_have_value("Ada")
    page.context.set_offline(False)
    expect(dialog).to_be_hidden()
    expect(page.locator("body > .problem")).to_be_empty()
    assert names(read_all(client)) == ["Ada"]


@on_sqlite
def test_answer_that_got_lost_is_no_conflict_with_oneself(client: httpx.Client, page: Page) -> None:
    def lose_first_answer() -> None:
        # It reaches the app, and is done; then the browser sees the connection break.
        page.route("**/users/*", lambda route: (route.fetch(), route.abort()), times=1)

    button(page, "Add person").click()
    fill(page, "Ada", "ada@example.com")
    lose_first_answer()
    save(page)
    button(page, "Edit Ada").click()
    page.get_by_label("Name", exact=True).fill("Ada King")
    lose_first_answer()
    save(page)
    (user,) = read_all(client)
    assert (user["name"], user["version"]) == ("Ada King", 2)
    choose_file(page, "name,email\nBob,bob@example.com\nCem,cem@example.com")
    expect(button(page, "Import 2 people")).to_be_visible()
    lose_first_answer()
    button(page, "Import 2 people").click()
    assert figures(page) == ["2 added", "0 skipped", "0 refused"]


@on_sqlite
def test_address_taken_between_check_and_import_is_skipped(
    client: httpx.Client, page: Page
) -> None:
    choose_file(page, "name,email\nBob,bob@example.com\nCem,cem@example.com")
    expect(button(page, "Import 2 people")).to_be_visible()
    add(client, "Other", "BOB@example.com")
    button(page, "Import 2 people").click()
    assert figures(page) == ["1 added", "1 skipped", "0 refused"]
    assert reasons(page) == [["2", "Skipped. Somebody has this address already."]]
    assert names(read_all(client)) == ["Other", "Cem"]


@pytest.mark.parametrize("database", ["redis"], indirect=True)
def test_database_that_is_away_is_said_and_waited_for(
    database: Database, tmp_path: Path, new_page: Callable[..., Page], client: httpx.Client
) -> None:
    real, port = make_url(database.url), free_port()
    url = real.set(port=port).render_as_string(hide_password=False)
    with serve(url, tmp_path) as server:
        page = new_page(server.url)
        said = page.locator("body > .problem")
        expect(said).to_contain_text("The database does not answer. Trying again")
        with relay(port, real.port or 0):
            expect(page.locator("#nobody")).to_contain_text("Nobody is here yet.")
            expect(said).to_be_empty()


# Text stays text


@on_sqlite
def test_html_in_a_name_stays_text_everywhere(
    client: httpx.Client, page: Page, conflict: User
) -> None:
    save(page)
    client.patch(f"/users/{conflict['id']}", json={"name": XSS})
    page.reload()
    expect(page.locator("#people b")).to_have_text([XSS])
    button(page, f"Edit {XSS}").click()
    expect(page.get_by_role("heading", name=f"Edit {XSS}")).to_be_visible()
    button(page, "Cancel").click()
    button(page, f"Delete {XSS}").click()
    expect(page.locator("#undo li")).to_contain_text(f"{XSS} is deleted.")
    page.keyboard.press("Control+z")
    choose_file(page, f"name,email\n{XSS},{XSS}\n{XSS},theirs@example.com")
    assert figures(page) == ["0 will be added", "1 skipped", "1 refused"]
    expect(page.locator("td b")).to_have_text([XSS, XSS])
    assert page.locator("img, script[src*=x]").count() == 0


# Import and export


@on_sqlite
def test_import_shows_first_what_it_would_do_and_why(client: httpx.Client, page: Page) -> None:
    add(client, "Grace", "grace@example.com")
    before = read_all(client)
    text = (
        "\ufeffE-mail;Full name;Team\r\n"
        'ada@example.com;"Lovelace, ""Ada""; Countess";1\r\n'
        "\r\n"
        'two@example.com;"Two\nlines";1\r\n'
        "GRACE@example.com;Grace Hopper;2\r\n"
        "bad@;Bad;2\r\n"
        "zoe@example.com;Zoë;2\r\n"
        "ADA@example.com;Ada again\r\n"
        "late@example.com"
    )
    choose_file(page, text)
    assert figures(page) == ["2 will be added", "2 skipped", "3 refused"]
    expect(page.get_by_role("heading", name="Nothing is stored yet")).to_be_focused()
    control = "There are characters in it that cannot be seen. Please type it anew."
    assert reasons(page) == [
        ["4", f"Refused. {control}"],
        ["6", "Skipped. Somebody has this address already."],
        ["7", "Refused. This is not an address. There must be something after the @-sign."],
        ["9", "Skipped. Line 2 has the same address."],
        ["10", "Refused. Please write a name."],
    ]
    assert read_all(client) == before
    button(page, "Import 2 people").click()
    expect(page.get_by_role("heading", name="The import is done")).to_be_focused()
    assert figures(page) == ["2 added", "2 skipped", "3 refused"]
    assert names(read_all(client))[1:] == ['Lovelace, "Ada"; Countess', "Zoë"]
    with page.expect_download() as download:
        button(page, "Download report").click()
    report = list(csv.DictReader(download.value.path().read_text().splitlines()))
    results = ["added", "refused", "skipped", "refused", "added", "skipped", "refused"]
    assert [row["result"] for row in report] == results
    assert [row["line"] for row in report] == ["2", "4", "6", "7", "8", "9", "10"]
    button(page, "Close").click()
    expect(rows(page)).to_have_count(3)


@on_sqlite
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "There is nothing in this file."),
        ("a,b\nc,d\n", 'The first line must name the columns: "name" and "email".'),
        ("\x00\x01\x02", 'The first line must name the columns: "name" and "email".'),
    ],
)
def test_file_that_is_no_list_is_said_in_words(page: Page, text: str, said: str) -> None:
    choose_file(page, text)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text(said)


@on_sqlite
@pytest.mark.parametrize(
    "data",
    [
        "Zoë;zoe@example.com\n".encode("cp1252"),
        "name\temail\nZoë\tzoe@example.com\n".encode("utf-16"),
        b'"email","name"\r"zoe@example.com","Zo\xc3\xab"\r',
        "zoe@example.com,Zoë".encode(),
    ],
)
def test_import_reads_what_spreadsheets_write(
    client: httpx.Client, page: Page, data: bytes
) -> None:
    choose_file(page, data)
    button(page, "Import 1 person").click()
    assert figures(page) == ["1 added", "0 skipped", "0 refused"]
    (user,) = read_all(client)
    assert (user["name"], user["email"]) == ("Zoë", "zoe@example.com")


@on_sqlite
def test_file_can_be_dropped(client: httpx.Client, page: Page) -> None:
    button(page, "Import").click()
    went_on = page.locator(".drop").evaluate(
        """(target) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["name,email\\nAda,ada@example.com"], "list.csv"));
            const options = { dataTransfer, bubbles: true, cancelable: true };
            return ["dragover", "drop"].map((type) =>
                target.dispatchEvent(new DragEvent(type, options)));
        }"""
    )
    assert went_on == [False, False]  # else the browser would open the file
    assert figures(page) == ["1 will be added", "0 skipped", "0 refused"]
    assert read_all(client) == []


@on_sqlite
def test_ten_thousand_people_are_imported_in_one_go(client: httpx.Client, page: Page) -> None:
    lines = [f"Person {i},p{i}@example.com" for i in range(10_000)]
    began = time.monotonic()
    choose_file(page, "\n".join(["name,email", *lines]))
    button(page, "Import 10,000 people").click(timeout=30_000)
    expect(page.get_by_role("progressbar", name="Importing")).to_be_visible()
    expect(page.get_by_role("heading", name="The import is done")).to_be_visible(timeout=30_000)
    assert time.monotonic() - began < 30
    assert figures(page) == ["10,000 added", "0 skipped", "0 refused"]
    total = client.get("/users/?total=true&limit=1").json()["total"]
    assert total == 10_000


@on_sqlite
def test_import_that_is_cancelled_says_who_is_in(client: httpx.Client, page: Page) -> None:
    choose_file(page, "\n".join(f"Person {i},p{i}@example.com" for i in range(6000)))
    button(page, "Import 6,000 people").click(timeout=30_000)
    button(page, "Cancel").click()
    expect(page.get_by_role("heading", name="The import has stopped")).to_be_focused()
    added, _, _, left_out = (int(text.split()[0].replace(",", "")) for text in figures(page))
    assert left_out > 0
    assert added == client.get("/users/?total=true&limit=1").json()["total"] == 6000 - left_out


@on_sqlite
def test_import_goes_on_when_the_connection_is_back(client: httpx.Client, page: Page) -> None:
    choose_file(page, "name,email\nAda,ada@example.com")
    expect(button(page, "Import 1 person")).to_be_visible()
    page.context.set_offline(True)
    button(page, "Import 1 person").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("No connection")
    page.context.set_offline(False)
    assert figures(page) == ["1 added", "0 skipped", "0 refused"]


@on_sqlite
def test_export_is_a_file_and_comes_back_in_as_it_was(client: httpx.Client, page: Page) -> None:
    add(client, "=1+1", "a@example.com")
    add(client, 'a "quoted", name', "b@example.com")
    users = read_all(client)
    for link in ("CSV, for a spreadsheet", "JSONL, for a program"):
        page.get_by_text("Export").click()
        with page.expect_download() as download:
            page.get_by_role("link", name=link).click()
        text = download.value.path().read_text()
        if "CSV" in link:
            assert download.value.suggested_filename == "users.csv"
            exported = text
        else:
            assert [json.loads(line) for line in text.splitlines()] == users
    client.post("/-/wipe")
    choose_file(page, exported)
    button(page, "Import 2 people").click()
    assert figures(page) == ["2 added", "0 skipped", "0 refused"]
    assert names(read_all(client)) == names(users)


# Who may


WRITER, READER = f"ada:{'w' * 24}", f"bob:{'r' * 24}"


@on_sqlite
def test_token_is_asked_for_once_and_kept_for_the_tab(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_page: Callable[..., Page],
    client: httpx.Client,
) -> None:
    add(client, "Ada", "ada@example.com")
    monkeypatch.setenv("API_TOKENS", WRITER)
    monkeypatch.setenv("API_READ_TOKENS", READER)
    with serve(database.url, tmp_path, app="app:app") as server:
        page = new_page(server.url)
        asker = page.get_by_role("dialog", name="Who are you?")
        for token in ("wrong€", WRITER.partition(":")[2]):
            expect(page.get_by_label("Token")).to_be_focused()
            page.get_by_label("Token").fill(token)
            page.keyboard.press("Enter")
            if token == "wrong€":  # noqa: S105 (it opens nothing)
                expect(asker.get_by_role("alert")).to_have_text("Roster does not know this token.")
        expect(page.locator("#people b")).to_have_text(["Ada"])
        page.reload()
        expect(page.locator("#people b")).to_have_text(["Ada"])
        page.get_by_text("Export").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="JSONL").click()
        assert json.loads(download.value.path().read_text())["name"] == "Ada"
        assert page.context.cookies() == []
        assert page.evaluate("localStorage.length") == 0

        page = new_page(server.url)
        page.get_by_label("Token").fill(READER.partition(":")[2])
        page.keyboard.press("Enter")
        button(page, "Edit Ada").click()
        page.get_by_label("Name", exact=True).fill("Eve")
        button(page, "Save").click()
        expect(page.get_by_role("alert")).to_contain_text("token only reads")
        expect(page.get_by_label("Name", exact=True)).to_have_value("Eve")
        button(page, "Cancel").click()
        choose_file(page, "name,email\nBob,bob@example.com")
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("token only reads")


# For everybody

EVERY_TEXT = """() => {
    const luminance = (rgb) => rgb
        .map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (texts.nextNode()) {
        const parent = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !parent.checkVisibility()) continue;
        const backs = [];
        for (let at = parent; at; at = at.parentElement) backs.unshift(getComputedStyle(at).backgroundColor);
        const [dark, light] = [paint(backs), paint([...backs, getComputedStyle(parent).color])]
            .map(luminance).sort((a, b) => a - b);
        found.push([texts.currentNode.data.trim(), (light + 0.05) / (dark + 0.05)]);
    }
    return found;
}"""  # noqa: E501 (it is another language)


def too_pale(page: Page) -> list[Any]:
    """Return the texts whose contrast is below WCAG 2.2's AA (1.4.3)."""
    texts = page.evaluate(EVERY_TEXT)
    assert len(texts) > 5
    return [text for text in texts if text[1] < 4.5]


@on_sqlite
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(
    client: httpx.Client, new_page: Callable[..., Page], scheme: str
) -> None:
    for name in ("Ada", "Bob", "Cem", "Dee", "Eve", "Fay"):  # faces of several colours
        add(client, name)
    page = new_page(color_scheme=scheme)
    expect(rows(page)).to_have_count(6)
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert back == {"light": "rgb(245, 244, 240)", "dark": "rgb(20, 24, 26)"}[scheme]
    button(page, "Delete Ada").click()
    expect(page.locator("#undo li")).to_be_visible()
    assert too_pale(page) == []
    button(page, "Edit Bob").click()
    fill(page, "", "bob")
    button(page, "Save").click()
    expect(page.locator("#name-problem")).not_to_be_empty()
    assert too_pale(page) == []
    page.context.set_offline(True)
    fill(page, "Bob", "bob@example.com")
    button(page, "Save").click()
    expect(page.get_by_role("dialog").get_by_role("status")).not_to_be_empty()
    assert too_pale(page) == []
    button(page, "Cancel").click()
    page.context.set_offline(False)
    choose_file(page, "name,email\nx,y\nz,z@example.com")
    figures(page)
    assert too_pale(page) == []


@on_sqlite
def test_phone_shows_all_without_scrolling_sideways(
    client: httpx.Client, new_page: Callable[..., Page]
) -> None:
    add(client, "W" * 100, "w" * 60 + "@" + "w" * 60 + ".example.com")
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)

    def fits() -> bool:
        outside = """[...document.querySelectorAll("body *")].filter((at) =>
            at.checkVisibility() && !at.closest(".unseen, .scroll")
            && (at.getBoundingClientRect().right > 390 || at.getBoundingClientRect().left < 0))
            .map((at) => at.outerHTML.slice(0, 80))"""
        assert page.evaluate(outside) == []
        small = """[...document.querySelectorAll("button, summary, input, select")].filter((at) =>
            at.checkVisibility() && at.type !== "radio" && at.getBoundingClientRect().height < 44)
            .map((at) => at.outerHTML.slice(0, 80))"""
        assert page.evaluate(small) == []
        return bool(page.evaluate("document.documentElement.scrollWidth") == 390)

    expect(rows(page)).to_have_count(1)
    assert fits()
    page.get_by_text("Export").tap()
    assert fits()
    page.keyboard.press("Escape")
    button(page, f"Edit {'W' * 100}").tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("V" * 100)
    client.patch(f"/users/{read_all(client)[0]['id']}", json={"name": "U" * 100})
    button(page, "Save").tap()
    expect(page.get_by_role("group", name="Name")).to_be_visible()
    assert fits()
    button(page, "Cancel").tap()
    button(page, f"Delete {'U' * 100}").tap()
    assert fits()
    choose_file(page, f"name,email\n{'x' * 100},{'y' * 100}")
    figures(page)
    assert fits()


@on_sqlite
def test_screen_reader_has_a_name_for_everything(client: httpx.Client, page: Page) -> None:
    add(client, "Ada", "ada@example.com")
    page.reload()
    expect(page.locator("body")).to_match_aria_snapshot("""
        - banner:
          - heading "Roster" [level=1]
          - navigation "Whole list":
            - button "Import"
            - group
            - button "Add person"
        - status
        - main:
          - search:
            - 'searchbox "Search: the beginning of a name, or an address"'
            - combobox "Order"
          - list "People":
            - listitem:
              - paragraph: Ada ada@example.com
              - time
              - paragraph:
                - button "Edit Ada"
                - button "Delete Ada"
        - list "Deleted just now"
        - status
    """)
    button(page, "Edit Ada").click()
    dialog = page.get_by_role("dialog", name="Edit Ada")
    expect(dialog.get_by_label("Name", exact=True)).to_be_focused()
    button(page, "Cancel").click()
    expect(button(page, "Edit Ada")).to_be_focused()
    button(page, "Import").click()
    expect(page.get_by_role("dialog", name="Import people").locator("#file")).to_be_focused()
    page.keyboard.press("Escape")
    expect(button(page, "Import")).to_be_focused()


@on_sqlite
@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_who_wants_it_so(
    client: httpx.Client, new_page: Callable[..., Page], motion: str, moves: bool
) -> None:
    page = new_page(reduced_motion=motion)
    # Without this, it would be over before it is looked at.
    page.evaluate(
        "addEventListener('animationstart', ({ target }) => (target.dataset.moves = true), true)"
    )
    button(page, "Add person").click()
    page.get_by_label("Name", exact=True).fill("x")
    page.wait_for_timeout(100)
    assert (page.locator("dialog[data-moves]").count() == 1) == moves


# On every database


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_walk_through_the_page(
    client: httpx.Client, server: Server, new_page: Callable[..., Page]
) -> None:
    page = new_page()
    button(page, "Add person").click()
    fill(page, "Ada", "ada@example.com")
    save(page)
    choose_file(page, "name,email\nBob,bob@example.com\nAda,ADA@example.com\nBad,bad\n")
    assert figures(page) == ["1 will be added", "1 skipped", "1 refused"]
    assert names(read_all(client)) == ["Ada"]
    button(page, "Import 1 person").click()
    assert figures(page) == ["1 added", "1 skipped", "1 refused"]
    button(page, "Close").click()
    expect(page.locator("#people b")).to_have_text(["Ada", "Bob"])
    button(page, "Edit Bob").click()
    page.get_by_label("Name", exact=True).fill("Bob Mine")
    bob = read_all(client)[1]
    client.patch(f"/users/{bob['id']}", json={"email": "theirs@example.com"})
    button(page, "Save").click()
    expect(page.get_by_role("group", name="Email")).to_be_visible()
    save(page)
    search(page, "theirs@example.com")
    expect(page.locator("#people b")).to_have_text(["Bob Mine"])
    button(page, "Delete Bob Mine").click()
    expect(page.locator("#undo li")).to_be_visible()
    page.goto("about:blank")
    wait_until(lambda: names(read_all(client)) == ["Ada"], seconds=5)
