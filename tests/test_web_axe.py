"""Accessibility: axe finds nothing in any state, large text fits, and the focus is never lost."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import (
    act,
    button,
    check_file,
    choose_file,
    field,
    fill,
    on_sqlite,
    rows,
    save,
)
from conftest import quick_on, serve
from databases import Database
from playwright.sync_api import Page, expect
from test_contract import User, add

pytest_plugins = ["browsing"]
pytestmark = on_sqlite

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OPTIONS = {"runOnly": RULES, "resultTypes": ["violations"], "preload": False}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def problems(page: Page) -> list[str]:
    """Return what axe finds wrong: the rule, and where."""
    found = Axe().run(page, options=OPTIONS).response["violations"]
    return [f"{one['id']}: {[node['html'] for node in one['nodes']]}" for one in found]


def sideways(page: Page) -> list[str]:
    """Return what is cut off, or reaches beyond the window."""
    width = page.viewport_size["width"] if page.viewport_size else 0
    found: list[str] = page.evaluate(
        """(width) => [...document.querySelectorAll("body *")].filter((at) => {
            if (!at.checkVisibility() || at.closest(".unseen, .scroll")) return false;
            const { left, right } = at.getBoundingClientRect();
            return left < -1 || right > width + 1;
        }).map((at) => at.outerHTML.slice(0, 100))""",
        width,
    )
    return found


State = Callable[[Page, httpx.Client], Any]


def conflict(page: Page, client: httpx.Client) -> None:
    """Have another client change what is being edited."""
    user: User = client.get("/users/").json()["items"][0]
    act(page, "Edit", user["name"]).click()
    field(page, "Name").fill("Mine")
    field(page, "Email").fill("mine@example.com")
    client.patch(f"/users/{user['id']}", json={"name": "Theirs", "email": "theirs@example.com"})
    button(page, "Save").click()
    expect(page.get_by_role("group", name="Name")).to_be_visible()


def wrong(page: Page, client: httpx.Client) -> None:
    """Save what the API refuses."""
    button(page, "Add person").click()
    fill(page, "", "no address")
    button(page, "Save").click()
    expect(page.locator("#field-name-problem")).not_to_be_empty()


def lost(page: Page, client: httpx.Client) -> None:
    """Lose the connection."""
    page.context.set_offline(True)
    page.get_by_label("Order").select_option("Z to A")
    expect(page.locator("body > .problem")).not_to_be_empty()


def deleted(page: Page, client: httpx.Client) -> None:
    """Delete two rows, one of which was changed meanwhile."""
    act(page, "Delete", "Ada").click()
    act(page, "Delete", "Bob").click()
    expect(page.locator("#undo")).to_contain_text("2 people deleted.")


def not_deleted(page: Page, client: httpx.Client) -> None:
    """Have a deletion refused."""
    act(page, "Delete", "Ada").click()
    client.patch(f"/users/{client.get('/users/').json()['items'][0]['id']}", json={"name": "Eve"})
    expect(page.locator("#undo")).to_contain_text("Ada is not deleted.", timeout=20_000)


def imported(page: Page, client: httpx.Client) -> None:
    """Import a list to its end."""
    check_file(page, "name,email\nAda King,ada@example.com\nx,y\nDee,dee@example.com\n")
    button(page, "Update 1 person too …").click()
    button(page, "Import 1 person, update 1 person").click()
    expect(page.get_by_role("heading", name="The import is done")).to_be_visible()


STATES: dict[str, State] = {
    "list": lambda page, client: None,
    "selection": lambda page, client: page.get_by_label("Select Ada").check(),
    "export menu": lambda page, client: page.locator("#export").click(),
    "editor": lambda page, client: act(page, "Edit", "Ada").click(),
    "refused": wrong,
    "conflict": conflict,
    "lost connection": lost,
    "undo": deleted,
    "report": not_deleted,
    "import": lambda page, client: button(page, "Import").click(),
    "no list": lambda page, client: choose_file(page, b"\x89PNG"),
    "preview": lambda page, client: choose_file(page, "a;b;c\nÄda;King;a@b.de".encode("cp1252")),
    "check": lambda page, client: check_file(page, "name,email\nx,y\nAda,ada@example.com\n,,"),
    "imported": imported,
}


@pytest.mark.parametrize("options", quick_on([{}, {"color_scheme": "dark"}, PHONE], {}), ids=str)
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(
    client: httpx.Client, new_page: Callable[..., Page], state: str, options: dict[str, Any]
) -> None:
    for name in ("Ada", "Bob", "Cem"):
        add(client, name, f"{name.lower()}@example.com")
    page = new_page(**options)
    expect(rows(page)).to_have_count(3)
    STATES[state](page, client)
    page.wait_for_timeout(100)  # a dialog that the state opens is open by now
    assert problems(page) == []
    if options is PHONE:
        assert sideways(page) == []
    page.context.set_offline(False)


def test_axe_finds_nothing_in_an_empty_list(client: httpx.Client, page: Page) -> None:
    assert problems(page) == []


def test_axe_finds_nothing_when_signing_in(
    database: Database,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    new_page: Callable[..., Page],
) -> None:
    monkeypatch.setenv("API_TOKENS", f"ada:{'w' * 24}")
    with serve(database.url, tmp_path, app="app:app") as server:
        page = new_page(server.url)
        expect(page.get_by_label("Token")).to_be_focused()
        assert problems(page) == []
        page.get_by_label("Token").fill("w" * 24)
        page.keyboard.press("Enter")
        expect(button(page, "Sign out")).to_be_visible()
        assert problems(page) == []


@pytest.mark.parametrize("state", quick_on(STATES, "list", "editor", "conflict", "preview"))
def test_text_of_twice_the_size_fits_a_phone(
    client: httpx.Client, new_page: Callable[..., Page], state: str
) -> None:
    for name in ("Ada", "Bob", "Cem"):
        add(client, name, f"{name.lower()}@example.com")
    page = new_page(**PHONE)
    expect(rows(page)).to_have_count(3)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    STATES[state](page, client)
    page.wait_for_timeout(100)
    assert sideways(page) == []
    page.context.set_offline(False)


def focused(page: Page) -> str:
    """Return where the focus is, "BODY" if it is lost."""
    where: str = page.evaluate(
        "document.activeElement.ariaLabel || document.activeElement.id"
        " || document.activeElement.tagName"
    )
    return where


def test_focus_is_never_lost(client: httpx.Client, page: Page) -> None:
    for name in ("Ada", "Bob"):
        add(client, name, f"{name.lower()}@example.com")
    page.reload()
    page.locator("#export").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    assert focused(page) == "export"
    # The row whose button opened the editor is drawn anew by a conflict.
    conflict(page, client)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert focused(page) == "Theirs, theirs@example.com"
    # The row that was open is gone.
    act(page, "Edit", "Bob").click()
    field(page, "Name").fill("Bob King")
    bob = next(user for user in client.get("/users/").json()["items"] if user["name"] == "Bob")
    client.delete(f"/users/{bob['id']}")
    button(page, "Save").click()
    expect(page.get_by_role("alert")).to_contain_text("deleted meanwhile")
    save(page)
    assert focused(page) == "Bob King, bob@example.com"
    page.get_by_label("Select Bob King").check()
    button(page, "Select none").press("Enter")
    assert focused(page) == "top"
    button(page, "Import").press("Enter")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert focused(page) == "import"
    for _ in range(2):
        rows(page).first.get_by_role("button", name="Delete").press("Enter")
    page.keyboard.press("Control+z")
    assert focused(page) != "BODY"
    page.keyboard.press("Control+z")
    assert focused(page) != "BODY"


def test_more_rows_keep_the_focus(client: httpx.Client, page: Page) -> None:
    new = [{"name": f"n{i:03}", "email": f"{i}@example.com"} for i in range(60)]
    client.post("/users/bulk", json=new)
    # An observer would load them before the button is reached.
    page.add_init_script("IntersectionObserver.prototype.observe = () => {}")
    page.reload()
    button(page, "Show more").press("Enter")
    expect(rows(page)).to_have_count(60)
    assert focused(page) == "n050, 50@example.com"
