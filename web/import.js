// Importing a list: read the file, ask the API what it would do with it, show that, then do it.

import { breakable, byId, call, download, element, load, people } from "./roster.js";
import { inWords } from "./words.js";

// This many of the longest people fit in the API's 1 MiB.
const LOT = 300;
const SHOWN = 100; // problems on the screen; the report has them all

// ---- Reading a file

/** Return a file's text: UTF-8, or what spreadsheets write besides. */
async function readText(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes); // without its BOM, too
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

/**
 * Return the rows of a CSV text (RFC 4180) that are not blank: {line, cells}.
 *
 * The separator is what the first line has most of: a comma, a semicolon or a tab.
 */
export function parse(text) {
  const first = text.split(/[\r\n]/, 1)[0];
  const often = (mark) => first.split(mark).length;
  const [mark] = [",", ";", "\t"].sort((a, b) => often(b) - often(a));
  // A cell in quotes (two of them are one), or else all up to the next separator; then what ends it.
  const cell = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^${mark}\r\n]*))(${mark}|\r\n|\r|\n|$)`, "y");
  const rows = [];
  let line = 1;
  let row = { line, cells: [] };
  while (cell.lastIndex < text.length || row.cells.length) {
    const [all, quoted, plain, ending] = cell.exec(text);
    row.cells.push((quoted?.replaceAll('""', '"') ?? plain).trim());
    line += all.match(/\r\n|\r|\n/g)?.length ?? 0;
    if (ending === mark) continue;
    if (row.cells.some(Boolean)) rows.push(row);
    row = { line, cells: [] };
  }
  return rows;
}

/** Return the people in a CSV text; throw an Error that says what is missing. */
export function readPeople(text) {
  const rows = parse(text);
  if (!rows.length) throw new Error("There is nothing in this file.");
  const { cells } = rows[0];
  let nameAt = cells.findIndex((title) => /^(full )?name$/i.test(title));
  let emailAt = cells.findIndex((title) => /^e-?mail( address)?$/i.test(title));
  if (nameAt >= 0 && emailAt >= 0) rows.shift();
  else {
    emailAt = cells.findIndex((text) => text.includes("@"));
    nameAt = emailAt === 0 ? 1 : 0;
    if (emailAt < 0 || cells.length < 2) throw new Error('The first line must name the columns: "name" and "email".');
  }
  // Exports have an apostrophe before what a spreadsheet would compute.
  const unguarded = (cell = "") => cell.replace(/^'(?='*[=+\-@＝＋－＠])/, "");
  const lines = new Map(); // by address
  return rows.map(({ line, cells }) => {
    const person = { line, name: unguarded(cells[nameAt]), email: unguarded(cells[emailAt]), result: "", why: "" };
    const key = person.email.normalize("NFKC").toLowerCase();
    if (key && lines.has(key)) Object.assign(person, { result: "skipped", why: `Line ${lines.get(key)} has the same address.` });
    else lines.set(key, line);
    return person;
  });
}

// ---- Asking the API

const undecided = (list) => list.filter(({ result }) => !result);

// Too long is too long: the rest of it need not be sent to be told so.
const toSend = ({ name, email }) => ({ name: name.slice(0, 201), email: email.slice(0, 255) });

/** Call a function with one lot of people after the other. */
async function inLots(list, state, work) {
  for (let at = 0; at < list.length && !state.stop; at += LOT) {
    state.progress(at, list.length);
    await work(list.slice(at, at + LOT));
  }
}

/**
 * Store a lot, and note at each person what became of it: who is refused or skipped is left out, and
 * the others are sent again.
 *
 * `dry` finds out the same without storing anybody: the first person is sent twice. As the API
 * stores all or nobody, and no address twice, it refuses such a list in any case, and names each
 * wrong field (422) or else each address that is taken (409).
 */
async function send(lot, signal, dry) {
  for (let asked = lot; asked.length; asked = undecided(asked)) {
    const body = (dry ? [...asked, asked[0]] : asked).map(toSend);
    const answer = await call("users/bulk", { method: "POST", body, signal }).catch((error) => error);
    if (answer.items) return asked.forEach((person) => (person.result = "added"));
    if (!answer.fields?.length) {
      // Refused, nobody is stored. But a request that was given up may have been done.
      const unknown = { result: "unknown", why: "No answer came: it is added, or it is not." };
      if (!answer.status) asked.forEach((person) => Object.assign(person, unknown));
      throw answer;
    }
    let decided = 0;
    for (const problem of answer.fields) {
      const person = asked[problem.loc[1]]; // none: it is the one who was sent twice
      if (!person || person.result) continue;
      // The check found this address free: an attempt whose answer got lost has taken it.
      const isOurs = answer.unsure && !dry && (await isStored(person, signal));
      person.result = isOurs ? "added" : answer.status === 409 ? "skipped" : "refused";
      if (!isOurs) person.why = inWords(problem);
      decided += 1;
    }
    if (dry && answer.status === 409) return;
    if (!decided) throw answer; // sent again, it would be refused again
  }
}

/** Return whether somebody of this name has this address. */
async function isStored({ name, email }, signal) {
  const { items } = await call(`users/?${new URLSearchParams({ email })}`, { signal });
  return items[0]?.name === name;
}

// ---- The dialog

const dialog = byId("importer");
const title = element("h2", { id: "importer-title", tabIndex: -1 });
const problem = element("p", { className: "problem", role: "status" });
const content = element("div", { className: "import" });
document.head.append(element("link", { rel: "stylesheet", href: "import.css" }));
dialog.append(title, problem, content);
let running = null; // what is under way, as begin() returns it

/** Show one step of the import: its title, what is in it, its buttons. */
function step(words, parts, ...buttons) {
  title.textContent = words;
  content.replaceChildren(...parts, element("footer", {}, ...buttons));
  if (!dialog.open) dialog.showModal();
  title.focus();
}

const button = (text, onclick, className = "") => element("button", { onclick, className }, text);
const closing = (text) => button(text, () => dialog.close());

/** Ask for a file. */
export function open() {
  const input = element("input", { type: "file", accept: ".csv,.tsv,.txt,text/csv", id: "file" });
  input.setAttribute("aria-describedby", "hint");
  const label = element("label", { className: "drop" }, element("b", {}, "Choose a CSV file, or drop it here"), input);
  const hint =
    "The first line of the file names its columns: name and email. " +
    "You will see what becomes of each person before anything is stored.";
  const said = element("p", { className: "wrong", role: "alert" });
  const take = async (file) => {
    try {
      if (file) await preview(file);
    } catch (error) {
      said.textContent = error.message;
      ask();
    }
  };
  const ask = () => step("Import people", [label, element("p", { id: "hint" }, hint), said], closing("Cancel"));
  input.onchange = () => take(input.files[0]);
  // Anywhere: a file that misses its place would open instead of the page.
  dialog.ondrop = (event) => {
    event.preventDefault();
    if (!running) take(event.dataTransfer.files[0]);
  };
  ask();
  input.focus();
}

/** Show a bar, and a button that stops; return the state that the work looks at. */
function begin(words, what) {
  const bar = element("progress", { max: 1, value: 0, ariaLabel: words });
  const text = element("p", {}, what);
  const controller = new AbortController();
  const state = {
    stop: false,
    signal: controller.signal,
    progress(done, all) {
      bar.value = done / all;
      text.textContent = `${done.toLocaleString("en")} of ${people(all)}`;
    },
    cancel() {
      state.stop = true;
      text.textContent = "Stopping…";
      // The lot under way is finished; unless there is no connection.
      setTimeout(() => controller.abort(), 3000);
    },
  };
  running = state;
  step(words, [bar, text], button("Cancel", state.cancel));
  return state;
}

/** Read a file, ask the API, and show what would happen. */
async function preview(file) {
  const list = readPeople(await readText(file));
  const state = begin("Checking the list", "");
  try {
    await inLots(undecided(list), state, (lot) => send(lot, state.signal, true));
  } catch (error) {
    if (!state.stop) throw error;
  } finally {
    running = null;
  }
  if (state.stop) return dialog.close();
  const fresh = undecided(list);
  const go = fresh.length ? [button(`Import ${people(fresh.length)}`, () => run(list), "main")] : [];
  step("Nothing is stored yet", summary(list, "will be added"), closing("Cancel"), ...go);
}

/** Store everybody whom the API takes, and say how it went. */
async function run(list) {
  const state = begin("Importing", "");
  let why = "";
  try {
    await inLots(undecided(list), state, (lot) => send(lot, state.signal, false));
  } catch (error) {
    why = state.stop ? "" : error.message;
  }
  running = null;
  const rest = undecided(list);
  for (const person of rest) Object.assign(person, { result: "left out", why: why || "The import was cancelled." });
  const report = button("Download report", () => download("import-report.csv", toCsv(list)));
  const said = why ? [element("p", { className: "wrong", role: "alert" }, why)] : [];
  const words = rest.length || why ? "The import has stopped" : "The import is done";
  step(words, [...said, ...summary(list, "added")], report, button("Close", () => dialog.close(), "main"));
  load(true);
}

/** Return how many have which result, and who has a problem. */
function summary(list, good) {
  const counts = { "": 0, added: 0, skipped: 0, refused: 0 };
  for (const { result } of list) counts[result] = (counts[result] ?? 0) + 1;
  const { "": open, added, ...others } = counts;
  const figures = [[good, open + added], ...Object.entries(others)].map(([word, number]) =>
    element("li", {}, element("b", {}, number.toLocaleString("en")), ` ${word}`),
  );
  const wrong = list.filter(({ why }) => why);
  const cells = ({ line, name, email, result, why }) =>
    element(
      "tr",
      {},
      element("td", {}, String(line)),
      element("td", {}, element("b", {}, name), element("span", {}, ...breakable(email))),
      element("td", {}, `${result[0].toUpperCase()}${result.slice(1)}. ${why}`),
    );
  const heads = ["Line", "Person", "Why"].map((text) => element("th", { scope: "col" }, text));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)));
  table.append(element("tbody", {}, ...wrong.slice(0, SHOWN).map(cells)));
  const more = wrong.length > SHOWN ? [element("p", {}, `And ${(wrong.length - SHOWN).toLocaleString("en")} more.`)] : [];
  const scroller = element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Who is left out" });
  scroller.append(table, ...more);
  return [element("ul", { className: "figures" }, ...figures), ...(wrong.length ? [scroller] : [])];
}

/** Return the report as a CSV file, none of whose cells a spreadsheet takes for a formula. */
function toCsv(list) {
  const safe = (value) => `"${String(value).replace(/^(?=[=+\-@＝＋－＠\t])/, "'").replaceAll('"', '""')}"`;
  const lines = list.map(({ line, name, email, result, why }) => [line, name, email, result, why].map(safe).join());
  return new Blob([["line,name,email,result,why", ...lines, ""].join("\r\n")], { type: "text/csv" });
}

dialog.ondragover = (event) => event.preventDefault();
dialog.oncancel = (event) => {
  if (!running) return;
  event.preventDefault();
  running.cancel();
};
addEventListener("beforeunload", (event) => running && event.preventDefault());
