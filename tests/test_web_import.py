"""Import and export on the page: the files that people have, in a real browser.

``tests/cases/import`` has a file of each kind that occurs, and what a person expects of it.
"""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import act, button, check_file, choose_file, figures, notes, on_sqlite, rows, search
from conftest import quick_on, wait_until
from playwright.sync_api import Page, expect
from test_contract import add, names, read_all

pytest_plugins = ["browsing"]

CASES = Path(__file__).parent / "cases" / "import"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CASES / "expected.json").read_text("utf-8"))
QUICK = (
    "book.xlsx excel-pl-1250-name-email.csv excel-sep-line.csv excel-title-line.csv google-new.csv"
)
QUICK += " header-name-email-comma-heavy.csv linkedin-connections.csv messy.csv photo.csv"
QUICK += " no-header-last-first-email.csv outlook-deutsch-1252.csv outlook-paste.txt"
QUICK += " verein-name-vorname.csv"


def preview(page: Page) -> list[tuple[str, str, str]]:
    """Return the name, the address and the note of each row of the preview."""
    expect(page.get_by_role("heading", name="Is this right?")).to_be_visible()
    cells = [row.locator("td").all_text_contents() for row in page.locator("tbody tr").all()]
    return [(row[1], row[2] if len(row) > 3 else "", row[-1]) for row in cells]


def choose_column(page: Page, label: str, title: str) -> None:
    """Choose a column for a field."""
    choice = page.get_by_label(label, exact=True)
    option = choice.locator("option", has_text=re.compile(rf"(^|: ){re.escape(title)}$"))
    choice.select_option(option.first.get_attribute("value"))


# What people have


def test_every_case_is_expected() -> None:
    assert {file.name for file in CASES.iterdir()} == {*EXPECTED, "expected.json", ".gitattributes"}


@on_sqlite
@pytest.mark.parametrize("name", quick_on(EXPECTED, *QUICK.split()))
def test_file_of_this_kind_is_a_list_of_people(
    client: httpx.Client, new_page: Callable[..., Page], name: str
) -> None:
    expected = EXPECTED[name]
    page = new_page(locale=expected.get("language", "en"))
    choose_file(page, (CASES / name).read_bytes(), name)
    if said := expected.get("said"):
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(said)
        return
    found = preview(page)
    if asks := expected.get("asks"):
        expect(page.get_by_role("dialog").get_by_role("status").last).to_have_text(
            "Choose which column is: Name."
        )
        expect(page.get_by_role("button", name=re.compile("^Check"))).to_be_disabled()
        for number, title in enumerate(asks):
            choose_column(page, "Name, then" if number else "Name", title)
        found = preview(page)
    people = [[name, address] for name, address, note in found if not note]
    assert people == expected["people"]
    assert len(found) == len(people) + expected["left_out"]
    if encoding := expected.get("encoding"):
        expect(page.get_by_label("Encoding")).to_have_value(encoding)
    else:
        expect(page.get_by_label("Encoding")).to_have_count(0)
    # The API takes them as they are shown.
    page.get_by_role("button", name=re.compile("^Check")).click()
    assert figures(page)[0] == f"{len(people)} will be added"


@on_sqlite
def test_guess_is_changed_with_a_click(client: httpx.Client, page: Page) -> None:
    choose_file(page, "Team;Alias;Contact\nBlue;Nora;nora@example.com\nRed;Zoé;zoe@example.com\n")
    assert [row[0] for row in preview(page)] == ["Nora", "Zoe"]
    choose_column(page, "Name", "Alias")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    assert [row[0] for row in preview(page)] == ["Nora", "Zoé"]
    choose_column(page, "Name, then", "Team")
    assert [row[0] for row in preview(page)] == ["Nora Blue", "Zoé Red"]
    choose_column(page, "Name", "(none)")
    assert [row[0] for row in preview(page)] == ["Blue", "Red"]


@on_sqlite
def test_encoding_is_changed_with_a_click(client: httpx.Client, page: Page) -> None:
    choose_file(
        page, "Name;E-mail\nJiří Dvořák;j@example.com\nLuděk;l@example.com".encode("cp1250")
    )
    page.get_by_label("Encoding").select_option(label="Greek (windows-1253)")
    assert preview(page)[0][0] == "Jiψν Dvoψαk"
    expect(page.get_by_label("Encoding")).to_be_focused()
    page.get_by_label("Encoding").select_option(label="Central European (windows-1250)")
    assert preview(page)[0][0] == "Jiří Dvořák"


@on_sqlite
def test_pasted_lines_are_a_list_too(client: httpx.Client, page: Page) -> None:
    button(page, "Import").click()
    page.get_by_label("Or paste lines").fill("Nora <nora@example.com>; zoe.lefevre@example.com")
    button(page, "Read these lines").click()
    assert preview(page) == [
        ("Nora", "nora@example.com", ""),
        ("Zoe Lefevre", "zoe.lefevre@example.com", ""),
    ]
    button(page, "Back").click()
    button(page, "Read these lines").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text(
        "There is nothing in this file."
    )


@on_sqlite
@pytest.mark.parametrize(
    ("text", "said"),
    [("", "There is nothing in this file."), ("\x00\x01\x02", "This is not a text file")],
)
def test_file_that_is_no_list_is_said_in_words(page: Page, text: str, said: str) -> None:
    choose_file(page, text)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(said)


# Import


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
        "late@example.com\r\n"
        ";Nobody"
    )
    check_file(page, text)
    assert figures(page) == ["4 will be added", "3 skipped", "1 refused"]
    expect(page.get_by_role("heading", name="Nothing is stored yet")).to_be_focused()
    assert notes(page) == [
        ["6", "Another person has this address already."],
        ["7", "This is not an address. There must be something after the @-sign."],
        ["9", "Line 2 has the same address."],
        ["11", "No address."],
    ]
    assert read_all(client) == before
    button(page, "Import 4 people").click()
    expect(page.get_by_role("heading", name="The import is done")).to_be_focused()
    assert figures(page) == ["4 added", "3 skipped", "1 refused"]
    stored = ['Lovelace, "Ada"; Countess', "Two lines", "Zoë", "Late"]
    assert names(read_all(client))[1:] == stored
    with page.expect_download() as download:
        button(page, "Download report").click()
    text = download.value.path().read_text("utf-8")
    assert text.startswith("\ufeff")  # else Excel takes it for another encoding
    report = list(csv.DictReader(text.removeprefix("\ufeff").splitlines()))
    results = ["added", "added", "skipped", "refused", "added", "skipped", "added", "skipped"]
    assert [row["result"] for row in report] == results
    assert [row["line"] for row in report] == ["2", "4", "6", "7", "8", "9", "10", "11"]
    button(page, "Close").click()
    expect(rows(page)).to_have_count(5)
    expect(button(page, "Import")).to_be_focused()


@on_sqlite
def test_import_is_undone_but_for_what_has_changed_since(client: httpx.Client, page: Page) -> None:
    kept = add(client, "Grace", "grace@example.com")
    check_file(page, "name,email\nAda,ada@example.com\nBob,bob@example.com\nCem,cem@example.com\n")
    button(page, "Import 3 people").click()
    expect(page.get_by_role("heading", name="The import is done")).to_be_visible()
    bob = next(user for user in read_all(client) if user["name"] == "Bob")
    client.patch(f"/users/{bob['id']}", json={"name": "Bobby"})
    button(page, "Undo this import").click()
    expect(page.get_by_role("heading", name="The import is undone")).to_be_visible()
    assert figures(page) == ["0 added", "0 skipped", "1 refused", "2 deleted again"]
    assert notes(page) == [["3", "This person has changed meanwhile, and is kept as it is."]]
    assert names(read_all(client)) == [kept["name"], "Bobby"]
    expect(button(page, "Undo this import")).to_have_count(0)
    button(page, "Close").click()
    expect(rows(page)).to_have_count(2)


@on_sqlite
def test_import_updates_if_asked_and_shows_old_and_new(client: httpx.Client, page: Page) -> None:
    ada = add(client, "Ada", "ada@example.com")
    add(client, "Bob", "bob@example.com")
    text = "name,email\nAda King,ADA@example.com\nBob,bob@example.com\nCem,cem@example.com\n"
    check_file(page, text)
    assert figures(page) == ["1 will be added", "2 skipped", "0 refused"]
    button(page, "Update 2 people too …").click()
    assert figures(page) == ["1 will be added", "1 skipped", "0 refused", "1 will be updated"]
    row = page.locator("tbody tr").first
    expect(row.locator("del")).to_have_text("Ada")
    expect(row.locator("td").nth(1)).to_have_text("Ada → Ada King")
    assert notes(page)[1][1] == "This person is there already, with the same values."
    assert names(read_all(client)) == ["Ada", "Bob"]
    footer = page.get_by_role("dialog").locator("footer")
    expect(footer).to_have_text("CancelImport 1 person, update 1 person")
    button(page, "Import 1 person, update 1 person").click()
    assert figures(page) == ["1 added", "1 skipped", "0 refused", "1 updated"]
    assert names(read_all(client)) == ["Ada King", "Bob", "Cem"]
    assert client.get(f"/users/{ada['id']}").json()["email"] == "ada@example.com"
    button(page, "Undo this import").click()
    expect(page.get_by_role("heading", name="The import is undone")).to_be_visible()
    assert names(read_all(client)) == ["Ada", "Bob"]


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
    assert preview(page) == [("Ada", "ada@example.com", "")]
    assert read_all(client) == []


@on_sqlite
def test_ten_thousand_people_are_imported_in_one_go(client: httpx.Client, page: Page) -> None:
    lines = [f"Person {i},p{i}@example.com" for i in range(10_000)]
    choose_file(page, "\n".join(["name,email", *lines]))
    button(page, "Check 10,000 people").click(timeout=30_000)
    button(page, "Import 10,000 people").click(timeout=60_000)
    expect(page.get_by_role("progressbar", name="Importing")).to_be_visible()
    expect(page.get_by_role("heading", name="The import is done")).to_be_visible(timeout=60_000)
    assert figures(page) == ["10,000 added", "0 skipped", "0 refused"]
    total = client.get("/users/?total=true&limit=1").json()["total"]
    assert total == 10_000


@on_sqlite
def test_import_that_is_cancelled_says_how_many_are_in(client: httpx.Client, page: Page) -> None:
    check_file(page, "\n".join(f"Person {i},p{i}@example.com" for i in range(6000)))
    button(page, "Import 6,000 people").click(timeout=60_000)
    button(page, "Cancel").click()
    expect(page.get_by_role("heading", name="The import has stopped")).to_be_focused()
    added, _, _, left_out = (int(text.split()[0].replace(",", "")) for text in figures(page))
    assert left_out > 0
    assert added == client.get("/users/?total=true&limit=1").json()["total"] == 6000 - left_out


@on_sqlite
def test_import_goes_on_when_the_connection_is_back(client: httpx.Client, page: Page) -> None:
    check_file(page, "name,email\nAda,ada@example.com")
    expect(button(page, "Import 1 person")).to_be_visible()
    page.context.set_offline(True)
    button(page, "Import 1 person").click()
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("No connection")
    page.context.set_offline(False)
    assert figures(page) == ["1 added", "0 skipped", "0 refused"]


# Export


@on_sqlite
def test_export_is_a_file_and_comes_back_in_as_it_was(client: httpx.Client, page: Page) -> None:
    add(client, "=1+1", "a@example.com")
    add(client, 'a "quoted", name', "b@example.com")
    users = read_all(client)
    for link in ("CSV, for a spreadsheet", "JSONL, for a program"):
        page.locator("#export").click()
        with page.expect_download() as download:
            button(page, link).click()
        expect(page.locator("#export")).to_be_focused()
        text = download.value.path().read_text("utf-8")
        if "CSV" in link:
            assert download.value.suggested_filename == "users.csv"
            assert re.match("\ufeff(?!\ufeff)", text)  # once, whoever puts it there
            exported = text
        else:
            assert [json.loads(line) for line in text.splitlines()] == users
    client.post("/-/wipe")
    check_file(page, exported)
    button(page, "Import 2 people").click()
    assert figures(page) == ["2 added", "0 skipped", "0 refused"]
    assert names(read_all(client)) == names(users)


@on_sqlite
@pytest.mark.usefixtures("search_by_q")
def test_export_is_of_what_is_searched(client: httpx.Client, page: Page) -> None:
    for name in ("Ada", "Bob", "Adam"):
        add(client, name)
    page.reload()
    search(page, "ada")
    expect(rows(page)).to_have_count(2)
    act(page, "Delete", "Adam").click()
    expect(rows(page)).to_have_count(1)
    page.locator("#export").click()
    with page.expect_download() as download:
        button(page, "JSONL, for a program").click()
    exported = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert names(exported) == ["Ada"]
    wait_until(lambda: names(read_all(client)) == ["Ada", "Bob"])
