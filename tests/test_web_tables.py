"""A second table on the page: its tab, forms, search and files come from openapi.json alone."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import (
    act,
    button,
    check_file,
    choose_file,
    field,
    figures,
    notes,
    on_sqlite,
    rows,
    save,
    search,
    shown,
)
from conftest import Server, serve, wait_until
from playwright.sync_api import Page, expect
from test_contract import add
from test_docs import DOCS, follow
from test_web_axe import problems

pytest_plugins = ["browsing"]
pytestmark = on_sqlite


@pytest.fixture(scope="module")
def two_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield Roster with users and projects, on a database that has these two tables."""
    with serve(None, tmp_path_factory.mktemp("tables"), app="web_app:app") as server:
        yield server


@pytest.fixture
def api(two_tables: Server) -> Iterator[httpx.Client]:
    """Yield a client of it, without users and projects."""
    with httpx.Client(base_url=two_tables.url) as api:
        for project in all_projects(api):
            api.delete(f"/projects/{project['id']}").raise_for_status()
        api.post("/-/wipe").raise_for_status()
        yield api


@pytest.fixture
def page(api: httpx.Client, two_tables: Server, new_page: Callable[..., Page]) -> Page:
    """Return the page of projects."""
    page = new_page(two_tables.url, timezone_id="Europe/Berlin")
    page.goto("/?table=projects")
    expect(page.locator("#nobody")).to_have_text("No projects yet.")
    return page


def add_project(api: httpx.Client, title: str, **more: Any) -> dict[str, Any]:
    """Add a project and return it."""
    project: dict[str, Any] = api.post("/projects/", json={"title": title, **more}).json()
    return project


def all_projects(api: httpx.Client) -> list[dict[str, Any]]:
    """Return all projects."""
    found: list[dict[str, Any]] = api.get("/projects/").json()["items"]
    return found


def test_every_table_is_a_tab(page: Page) -> None:
    tabs = page.get_by_role("navigation", name="Tables")
    expect(tabs.get_by_role("link")).to_have_text(["people", "projects"])
    expect(tabs.get_by_role("link", name="projects")).to_have_attribute("aria-current", "page")
    expect(page).to_have_title("Roster: projects")
    tabs.get_by_role("link", name="people").click()
    expect(page.locator("#nobody")).to_have_text("No people yet.")
    expect(tabs.get_by_role("link", name="people")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.locator("#nobody")).to_have_text("No projects yet.")


def test_form_has_a_field_of_each_kind(api: httpx.Client, page: Page) -> None:
    ada = add(api, "Ada Lovelace", "ada@example.com")
    button(page, "Add project").first.click()
    expect(page.get_by_role("dialog", name="Add a project")).to_be_visible()
    expect(page.get_by_role("dialog").locator("label")).to_have_text(
        ["Title", *(f"{name} (optional)" for name in ("Note", "Owner", "State", "Budget"))]
        + [f"{name} (optional)" for name in ("Hours", "Due", "Starts At", "Public", "Agreed")]
    )
    expect(field(page, "State (optional)")).to_have_value("idea")
    field(page, "Title").fill("Engine")
    field(page, "Note (optional)").fill("One\nTwo")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Search people").fill("")
    dialog.get_by_label("Search people").press("Enter")
    owner = field(page, "Owner (optional)")
    expect(owner.locator("option:checked")).to_have_text("Ada Lovelace, ada@example.com")
    field(page, "State (optional)").select_option("running")
    field(page, "Budget (optional)").fill("12.50")
    field(page, "Hours (optional)").fill("40")
    field(page, "Due (optional)").fill("2026-12-24")
    field(page, "Starts At (optional)").fill("2026-12-01T09:30")
    field(page, "Public (optional)").check()
    field(page, "Agreed (optional)").select_option("No")
    assert problems(page) == []
    save(page)
    (project,) = all_projects(api)
    expected = {"title": "Engine", "note": "One\nTwo", "owner_id": ada["id"], "state": "running"}
    expected |= {"budget": "12.50", "hours": 40, "due": "2026-12-24", "public": True}
    expected |= {"agreed": False, "starts_at": "2026-12-01T08:30:00Z", "tags": [], "version": 1}
    assert {name: project[name] for name in expected} == expected
    row = rows(page).first
    expect(row.locator(".who p")).to_contain_text("Owner: Ada Lovelace, ada@example.com")
    for text in ("State: running", "Budget: 12.50", "Due: 24 Dec 2026", "Public: Yes"):
        expect(row).to_contain_text(text)
    expect(row).to_contain_text("Starts At: 1 Dec 2026, 09:30")
    assert problems(page) == []


def test_edit_sends_what_was_changed_alone(api: httpx.Client, page: Page) -> None:
    ada = add(api)
    more = {"note": "One\r\nTwo", "starts_at": "2026-12-01T08:30:15.123Z", "budget": "12.50"}
    project = add_project(api, "Engine", owner_id=ada["id"], hours=3, tags=["a", "b"], **more)
    page.reload()
    act(page, "Edit", "Engine").click()
    # A field of a kind that the page does not know is shown and left alone.
    expect(page.get_by_role("dialog").get_by_text('Tags: ["a","b"]')).to_be_visible()
    field(page, "Hours").fill("4")
    field(page, "Owner").select_option("–")
    with page.expect_request("**/projects/*") as sent:
        save(page)
    assert sent.value.post_data_json == {"hours": 4, "owner_id": None}
    assert sent.value.headers["if-match"] == '"1"'
    changed = api.get(f"/projects/{project['id']}").json()
    same = {**project, "hours": 4, "owner_id": None, "version": 2}
    assert {**changed, "updated_at": ""} == {**same, "updated_at": ""}


def test_what_is_wrong_stands_at_its_field(api: httpx.Client, page: Page) -> None:
    add_project(api, "Engine")
    page.reload()
    button(page, "Add project").click()
    field(page, "Hours (optional)").fill("-1")
    button(page, "Save").click()
    expect(page.locator("#field-title-problem")).to_have_text("Please fill in the title.")
    expect(page.locator("#field-hours-problem")).to_contain_text("greater than or equal to 0")
    field(page, "Title").fill("Engine")
    field(page, "Hours (optional)").fill("1")
    button(page, "Save").click()
    expect(page.locator("#field-title-problem")).to_have_text("Another project has this title.")
    # A half of a date is not sent as none.
    field(page, "Title").fill("Other")
    field(page, "Due (optional)").press_sequentially("12")
    button(page, "Save").click()
    expect(page.locator("#field-due-problem")).to_have_text("This is not complete.")
    assert len(all_projects(api)) == 1


def test_conflict_is_shown_side_by_side(api: httpx.Client, page: Page) -> None:
    ada = add(api, "Ada", "ada@example.com")
    project = add_project(api, "Engine", hours=1)
    page.reload()
    act(page, "Edit", "Engine").click()
    field(page, "Hours").fill("2")
    field(page, "Public").check()
    theirs = {"hours": 3, "due": "2026-12-24", "owner_id": ada["id"]}
    api.patch(f"/projects/{project['id']}", json=theirs)
    button(page, "Save").click()
    groups = page.get_by_role("dialog").get_by_role("group")
    expect(groups).to_have_count(4)
    expect(groups.nth(0)).to_contain_text("Ada, ada@example.com")
    assert problems(page) == []
    expect(page.get_by_role("group", name="Due")).to_contain_text("24 Dec 2026")
    expect(page.get_by_role("radio", name="Theirs 3")).not_to_be_checked()
    expect(page.get_by_role("radio", name="Theirs 24 Dec 2026")).to_be_checked()
    expect(page.get_by_role("radio", name="Yours Yes")).to_be_checked()
    save(page)
    (stored,) = all_projects(api)
    assert [stored[name] for name in ("hours", "due", "owner_id", "public", "version")] == [
        *(2, "2026-12-24", ada["id"], True, 3)
    ]


def test_search_and_order_are_those_of_the_table(api: httpx.Client, page: Page) -> None:
    for title, due in (("Beta", "2026-12-01"), ("alpha", "2026-12-24"), ("Gamma", "2026-11-30")):
        add_project(api, title, due=due)
    page.reload()
    order = page.get_by_label("Order")
    expect(order.locator("option")).to_have_text(
        ["Oldest first", "Newest first", "A to Z", "Z to A", "Due, ascending", "Due, descending"]
    )
    order.select_option("Due, descending")
    expect(shown(page)).to_have_text(["alpha", "Beta", "Gamma"])
    page.get_by_role("searchbox", name="Search projects").fill("MA")
    expect(shown(page)).to_have_text(["Gamma"])
    assert "table=projects" in page.url
    page.reload()
    expect(shown(page)).to_have_text(["Gamma"])
    search(page, "xyz")
    expect(page.locator("#nobody")).to_have_text("No projects found.")


def test_delete_is_undone(api: httpx.Client, page: Page) -> None:
    project = add_project(api, "Engine")
    page.reload()
    act(page, "Delete", "Engine").click()
    expect(page.locator("#undo")).to_contain_text("Engine is deleted.")
    button(page, "Undo").click()
    assert all_projects(api) == [project]
    act(page, "Delete", "Engine").click()
    page.get_by_role("link", name="people").click()
    wait_until(lambda: all_projects(api) == [])


def test_import_has_a_column_for_each_field(api: httpx.Client, page: Page) -> None:
    ada = add(api, "Ada Lovelace", "ada@example.com")
    add_project(api, "Taken")
    text = (
        "Projects of 2026;;;;;;;\r\n"
        "Title;Owner;State;Budget;Due;Public;agreed;Phase\r\n"
        f"Engine;{ada['id']};Running;1.234,50;24.12.2026;ja;;x\r\n"
        "Bad;;nothing;12;2026-12-24;;;\r\n"
        "Taken;;;;;;;\r\n"
        "Last;;;;;no;x;\r\n"
    )
    choose_file(page, text)
    expect(page.get_by_role("dialog")).to_contain_text("Line 2 names the columns.")
    button(page, "Check 4 projects").click()
    assert figures(page) == ["3 will be added", "0 skipped", "1 refused"]
    (note,) = notes(page)
    assert note[0] == "4"
    button(page, "Import 3 projects").click()
    assert figures(page) == ["2 added", "1 skipped", "1 refused"]
    assert notes(page)[1] == ["5", "Another project has this title."]
    engine = next(one for one in all_projects(api) if one["title"] == "Engine")
    expected = {"owner_id": ada["id"], "state": "running", "budget": "1234.50", "public": True}
    expected |= {"due": "2026-12-24", "agreed": None}
    assert {name: engine[name] for name in expected} == expected
    button(page, "Undo this import").click()
    expect(page.get_by_role("heading", name="The import is undone")).to_be_visible()
    assert [one["title"] for one in all_projects(api)] == ["Taken"]


@pytest.mark.usefixtures("search_by_q")
def test_import_finds_a_reference_by_its_words(api: httpx.Client, page: Page) -> None:
    ada = add(api, "Ada Lovelace", "ada@example.com")
    add(api, "Ada Other", "other@example.com")
    text = "title,owner\nOne,ada@example.com\nTwo,Ada\nThree,Grace\nFour,ada love\n"
    check_file(page, text)
    assert figures(page) == ["2 will be added", "0 skipped", "2 refused"]
    assert notes(page) == [
        ["3", "Owner: more than one of the people found."],
        ["4", "Owner: none of the people found."],
    ]
    button(page, "Import 2 projects").click()
    assert figures(page)[0] == "2 added"
    assert {one["owner_id"] for one in all_projects(api)} == {ada["id"]}


def test_export_is_the_tables_own(api: httpx.Client, page: Page) -> None:
    add_project(api, "Engine", hours=3)
    add_project(api, "Other")
    page.reload()
    search(page, "engine")
    expect(rows(page)).to_have_count(1)
    page.locator("#export").click()
    with page.expect_download() as download:
        button(page, "JSONL, for a program").click()
    assert download.value.suggested_filename == "projects.jsonl"
    assert json.loads(download.value.path().read_text())["hours"] == 3
    page.get_by_label("Select Engine").check()
    expect(button(page, "Copy addresses")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("group", name="Selection").get_by_role("button", name="Export").click()
    text = download.value.path().read_text("utf-8-sig")
    (row,) = csv.DictReader(text.splitlines())
    assert (row["title"], row["hours"], row["owner_id"]) == ("Engine", "3", "")


def test_link_opens_a_row_of_this_table(api: httpx.Client, page: Page) -> None:
    project = add_project(api, "Engine")
    page.goto(f"/?table=projects#{project['id']}")
    page.reload()
    expect(page.get_by_role("dialog", name="Edit Engine")).to_be_visible()
    expect(page.locator("#changed")).to_have_text(re.compile("^Changed "))
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile(r"/\?table=projects$"))


def test_tables_of_the_documentation_are_on_the_page(
    copy: Path, new_page: Callable[..., Page]
) -> None:
    follow((DOCS / "own-table.md").read_text(), copy)
    with serve(None, copy, f"--app-dir={copy}", app="app:app") as server:
        with httpx.Client(base_url=server.url) as api:
            add(api, "Ada Lovelace", "ada@example.com")
        page = new_page(server.url)
        tabs = page.get_by_role("navigation", name="Tables").get_by_role("link")
        expect(tabs).to_have_text(["people", "projects", "tasks", "assignments"])

        def fill_in(one: str, searches: dict[str, str], **texts: str) -> None:
            page.get_by_role("link", name=f"{one}s").click()
            expect(page.locator("#nobody")).to_have_text(f"No {one}s yet.")
            button(page, f"Add {one}").first.click()
            for label, text in texts.items():
                field(page, label).fill(text)
            for many, found in searches.items():
                page.get_by_label(f"Search {many}").press("Enter")
                expect(page.locator("option:checked", has_text=found)).to_have_count(1)
            save(page)

        fill_in("project", {"people": "Ada Lovelace, ada@example.com"}, Title="Apollo")
        expect(rows(page)).to_contain_text("Owner: Ada Lovelace, ada@example.com")
        fill_in("task", {"projects": "Apollo"}, Title="Call")
        expect(rows(page)).to_contain_text("Project: Apollo")
        fill_in("assignment", {"people": "Ada Lovelace", "projects": "Apollo"}, Role="Pilot")
        expect(shown(page)).to_have_text(["Pilot"])
        button(page, "Add assignment").click()
        field(page, "Role").fill("Other")
        for many in ("people", "projects"):
            page.get_by_label(f"Search {many}").press("Enter")
        expect(page.locator("option:checked", has_text="Apollo")).to_have_count(1)
        button(page, "Save").click()
        expect(page.locator("#field-user_id-problem")).to_contain_text("Another assignment has")
