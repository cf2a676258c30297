// Importing a list: read it, show its rows as they would be stored, ask the API what it would do with them, then do it.

import { byId, call, element, listOf, load, many, number, settle, table } from "./roster.js";
import { decode, guessColumns, guessEncoding, readRows, toItems, ENCODINGS } from "./guess.js";
import { csv, download } from "./more.js";
import { inWords, text } from "./tables.js";

const [LOT, SHOWN] = [500, 100]; // rows in a request, which can be 1000 and 1 MiB; rows on the screen
const fields = table.create.filter(({ kind }) => kind !== "other");
// What no two rows share, and the list can be asked for.
const key = fields.find(({ kind, name }) => kind === "email" && table.parameters[name])?.name;
const undecided = (items) => items.filter(({ result }) => !result);
const only = (values, names) => Object.fromEntries(names.map((name) => [name, values[name]]));
const inLots = (items) => Array.from({ length: Math.ceil(items.length / LOT) }, (_, at) => items.slice(at * LOT, (at + 1) * LOT));
/** Store a lot, and note at each item what became of it: those that are refused or skipped are left out, and the others sent again.
 * `dry` finds out the same without storing any: it adds an item that the API must refuse, and the API stores all or none. Where a
 * field is unique, that is the first item once more: so the API names the values that are taken. */
async function send(lot, signal, dry) {
  for (let asked = undecided(lot); asked.length; asked = undecided(asked)) {
    const body = [...asked, ...(dry ? [key ? asked[0] : {}] : [])].map(({ values }) => values ?? null);
    const answer = await call(`${table.path}bulk`, { method: "POST", body, signal }).catch((error) => error);
    if (answer.items) return asked.forEach((item, at) => Object.assign(item, { result: "added", stored: answer.items[at] }));
    if (answer.status === 413 && asked.length > 1) {
      for (const half of [asked.slice(0, asked.length / 2), asked.slice(asked.length / 2)]) await send(half, signal, dry);
      return;
    }
    if (!answer.fields?.length) {
      // Refused, none is stored. But a request that was given up may have been done.
      const unknown = { result: "unknown", why: "No answer came: it is added, or it is not." };
      if (!answer.status) asked.forEach((item) => Object.assign(item, unknown));
      throw answer;
    }
    let decided = 0;
    for (const problem of answer.fields) {
      const item = asked[problem.loc[1]]; // none: it is the one that was added
      if (!item || item.result) continue;
      // The check found it free: an attempt whose answer got lost has taken it.
      const stored = answer.unsure && !dry && key ? await read(item, signal) : undefined;
      const taken = answer.status === 409;
      if (stored && !differing(item, stored).length) Object.assign(item, { result: "added", stored });
      else Object.assign(item, { result: taken ? "skipped" : "refused", why: inWords(problem), taken });
      decided += 1;
    }
    if (dry && (answer.status === 409 || !decided)) return;
    if (!decided) throw answer; // sent again, it would be refused again
  }
}
const read = async ({ values }, signal) => (await call(listOf(table.path, { [key]: values[key] }), { signal })).items[0];
const differing = ({ values }, stored) => Object.keys(values).filter((name) => name !== key && stored[name] !== values[name]);
/** Find the rows that an item refers to by words. */
async function resolve(item, signal) {
  for (const { name, to, label } of fields.filter(({ kind, name }) => kind === "reference" && /\D/.test(item.values[name] ?? ""))) {
    const { items } = await call(listOf(to.path, { q: item.values[name], limit: 2 }), { signal });
    if (items.length === 1) item.values[name] = items[0].id;
    else Object.assign(item, { result: "refused", why: `${label}: ${items.length ? "more than one" : "none"} of the ${to.many} found.` });
  }
}
/** Note at an item what became of a request about it. */
async function outcome(item, result, request) {
  try {
    Object.assign(item, { result, stored: await request });
  } catch (error) {
    if (!error.status) throw error;
    const changed = `This ${table.one} has changed meanwhile, and is kept as it is.`;
    Object.assign(item, error.status === 404 ? { result } : { result: "refused", why: error.status === 412 ? changed : error.message });
  }
}
const title = element("h2", { id: "importer-title", tabIndex: -1 });
const content = element("div", { className: "import" });
const dialog = element("dialog", { "aria-labelledby": title.id }, title, element("p", { className: "problem", role: "status" }), content);
document.body.append(dialog);
let cancel = null; // stops what is under way
let take = null; // takes a file that is chosen or dropped
function step(words, parts, ...buttons) {
  title.textContent = words;
  content.replaceChildren(...parts.flat().filter(Boolean), element("footer", {}, buttons));
  if (!dialog.open) dialog.showModal();
  title.focus();
}
const button = (words, onclick, className = "") => element("button", { onclick, className }, words);
const closing = (words, className) => button(words, () => dialog.close(), className);
const alert = (words) => words && element("p", { className: "wrong", role: "alert" }, words);
/** Work on parts of a list, some at once, behind a bar; return why it ended early, or "". */
async function workOn(words, parts, work, atOnce = 4) {
  const size = (part) => part.length ?? 1;
  const all = parts.reduce((sum, part) => sum + size(part), 0);
  const bar = element("progress", { max: all || 1, value: 0, ariaLabel: words });
  const said = element("p");
  const controller = new AbortController();
  let stopped = "";
  cancel = () => {
    said.textContent = "Stopping…";
    stopped = "It was cancelled.";
    setTimeout(() => controller.abort(), 3000); // what is under way is finished, unless there is no connection
  };
  step(words, [bar, said], button("Cancel", cancel));
  const queue = parts.values();
  const worker = async () => {
    for (const part of queue) {
      if (stopped) return;
      await work(part, controller.signal);
      said.textContent = `${number((bar.value += size(part)))} of ${many(all)}`;
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker)).catch((error) => {
    if (!stopped && !error.status) throw error;
    stopped ||= error.message;
  });
  cancel = null;
  return stopped;
}
/** Ask for a file, or for lines that are pasted. */
export async function open() {
  await settle();
  const input = element("input", { type: "file", id: "file", "aria-describedby": "hint" });
  const pasted = element("textarea", { id: "pasted", rows: 3, dir: "auto" });
  const said = element("div");
  take = async (blob) => {
    try {
      const bytes = new Uint8Array(await blob.arrayBuffer());
      preview(bytes, ...guessEncoding(bytes, navigator.languages));
    } catch (error) {
      if (error.constructor !== Error) throw error;
      said.replaceChildren(alert(error.message));
    }
  };
  input.onchange = () => input.files[0] && take(input.files[0]);
  const parts = [
    element("label", { className: "drop" }, element("b", {}, "Choose a CSV file, or drop it here"), input),
    element("label", { htmlFor: "pasted" }, `Or paste lines, as a table has them${key ? ", or the To: line of an email" : ""}`),
    ...[pasted, said, element("p", { id: "hint" }, "You see what becomes of each line before anything is stored.")],
  ];
  step(`Import ${table.many}`, parts, closing("Cancel"), button("Read these lines", () => take(new Blob([pasted.value])), "main"));
  input.focus();
}
function selectFor(id, ariaLabel, options, value, choose) {
  const select = element("select", { id, ariaLabel }, options.map(([value, words]) => element("option", { value }, words)));
  return Object.assign(select, { value, onchange: () => choose(select.value) });
}
/** Show the first rows as they would be stored, and the choices that make them so. */
function preview(bytes, encoding, certain) {
  const rows = readRows(decode(bytes, encoding));
  if (!rows.length) throw new Error("There is nothing in this file.");
  const { header, titles, rows: below, columns } = guessColumns(rows, fields);
  const example = (column) => below.find(({ cells }) => cells[column])?.cells[column].slice(0, 30) ?? "";
  const named = titles.map((words, column) => [String(column), words || `Column ${column + 1}: ${example(column)}`]);
  const codes = ENCODINGS.map(([code, words]) => [code, `${words} (${code})`]);
  const line = (words, ...parts) => element("p", { className: "columns" }, element("b", {}, words), ...parts);
  const choose = (name, at, value) => {
    columns[name].splice(at, 1, ...(value === "" ? [] : [Number(value)]));
    draw();
    byId(`column-${name}-${Math.min(at, columns[name].length)}`).focus();
  };
  const draw = () => {
    const items = toItems(below, fields, columns);
    const choices = fields.map(({ name, label, kind }) => {
      // The name can have several columns: there is one choice more than it has.
      const places = name === table.title ? [...columns[name], ""] : [columns[name][0] ?? ""];
      const select = (column, at) => {
        const options = [["", at ? "and …" : "(none)"], ...named];
        return selectFor(`column-${name}-${at}`, at ? `${label}, then` : label, options, column, (value) => choose(name, at, value));
      };
      return line(kind === "email" ? "Address" : label, places.map(select));
    });
    const letters = selectFor("encoding", "Encoding", codes, encoding, (code) => {
      preview(bytes, code, false);
      byId("encoding").focus();
    });
    if (!certain) choices.push(line("Letters", letters, "Are the names below right?"));
    const missing = fields.filter(({ required, name }) => required && !columns[name].length && !(name === "name" && key && titles.length === 1));
    const good = undecided(items).length;
    const go = button(`Check ${many(good)}`, () => check(items), "main");
    go.disabled = missing.length || !good;
    const known = `${header ? `Line ${header} names the columns. ` : ""}${good < items.length ? `Left out: ${number(items.length - good)}.` : ""}`;
    const said = missing.length ? `Choose which column is: ${missing.map(({ label }) => label).join(", ")}.` : known;
    step("Is this right?", [choices, grid("The first rows", items.slice(0, 20)), element("p", { role: "status" }, said)], button("Back", open), go);
  };
  draw();
}
/** Return a table of items in a frame that scrolls. */
function grid(label, items) {
  const shown = fields.filter(({ name }) => items.some(({ values }) => values[name] !== undefined));
  const cell = ({ values, old, changes = [] }, field) => {
    const before = changes.includes(field.name) && [element("del", {}, text(field, old[field.name])), " → "];
    return element("td", {}, before, element("span", { dir: "auto" }, String(values[field.name] ?? "")));
  };
  const row = (item) =>
    element("tr", { className: item.result }, element("td", {}, item.line), shown.map((field) => cell(item, field)), element("td", {}, item.why));
  const heads = ["Line", ...shown.map((field) => field.label), "Note"].map((words) => element("th", { scope: "col" }, words));
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, items.map(row)));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: label }, table);
}
async function check(items) {
  let why = fields.some(({ to }) => to) ? await workOn("Finding what they refer to", undecided(items), resolve) : "";
  why ||= await workOn("Checking the list", inLots(undecided(items)), (lot, signal) => send(lot, signal, true), 1);
  if (why) step("The check has stopped", [alert(why)], closing("Close"));
  else plan(items);
}
function plan(items, why) {
  const fresh = undecided(items).length;
  const updates = items.filter(({ changes }) => changes).length;
  const taken = items.filter(({ taken, old }) => taken && !old);
  const words = [fresh && `Import ${many(fresh)}`, updates && `${fresh ? "u" : "U"}pdate ${many(updates)}`].filter(Boolean).join(", ");
  const more = taken.length && key && button(`Update ${many(taken.length)} too …`, () => prepareUpdates(items, taken));
  const go = words && button(words, () => run(items), "main");
  step("Nothing is stored yet", [alert(why), summary(items, "will be added")], closing("Cancel"), more, go);
}
/** Show what the list would change of rows that are there already. */
async function prepareUpdates(items, taken) {
  const why = await workOn("Comparing", taken, async (item, signal) => {
    const old = (await read(item, signal)) ?? item.values;
    const changes = differing(item, old);
    if (changes.length) Object.assign(item, { old, changes, result: "will be updated", why: "" });
    else Object.assign(item, { old, why: `This ${table.one} is there already, with the same values.` });
  });
  plan(items, why);
}
/** Store all that the API takes, and say how it went. */
async function run(items) {
  const update = (item, signal) => {
    const request = { method: "PATCH", body: only(item.values, item.changes), version: item.old.version, signal };
    return outcome(item, "updated", call(`${table.path}${item.old.id}`, request));
  };
  let why = await workOn("Importing", inLots(undecided(items)), (lot, signal) => send(lot, signal, false), 1);
  why ||= await workOn("Updating", items.filter(({ changes }) => changes), update);
  for (const item of items) if (!item.result || item.result === "will be updated") Object.assign(item, { result: "left out", why });
  report(why ? "The import has stopped" : "The import is done", items, why);
}
function report(words, items, why) {
  const titles = ["line", ...fields.map(({ name }) => name), "result", "why"];
  const cells = (item) => [item.line, ...fields.map(({ name }) => item.values[name]), item.result, item.why];
  const done = items.filter(({ result }) => result === "added" || result === "updated");
  const save = button("Download report", () => download("import-report.csv", csv(titles, items.map(cells))));
  const back = done.length && button("Undo this import", () => undo(items, done));
  step(words, [alert(why), summary(items, "added")], back, save, closing("Close", "main"));
  load(true);
}
/** Delete what an import added, and put back what it changed, unless it has changed since. */
async function undo(items, done) {
  const back = (item, signal) => {
    const { id, version } = item.stored;
    const request = item.changes ? { method: "PATCH", body: only(item.old, item.changes) } : { method: "DELETE" };
    return outcome(item, item.changes ? "put back" : "deleted again", call(`${table.path}${id}`, { ...request, version, signal }));
  };
  const why = await workOn("Undoing the import", done, back);
  report(why ? "The undo has stopped" : "The import is undone", items, why);
}
/** Return how many have which result, and the lines that there is something to say about. */
function summary(items, good) {
  const counts = { [good]: 0, skipped: 0, refused: 0 };
  for (const { result } of items) counts[result || good] = (counts[result || good] ?? 0) + 1;
  const figures = Object.entries(counts).map(([word, n]) => element("li", {}, element("b", {}, number(n)), ` ${word}`));
  const noted = items.filter(({ why, changes }) => why || changes);
  const more = noted.length > SHOWN && element("p", {}, `And ${number(noted.length - SHOWN)} more, in the report.`);
  return [element("ul", { className: "figures" }, figures), noted.length && grid("Lines with a note", noted.slice(0, SHOWN)), more];
}
dialog.ondragover = (event) => event.preventDefault();
// Anywhere: a file that misses its place would open instead of the page.
dialog.ondrop = (event) => {
  event.preventDefault();
  if (!cancel) take(event.dataTransfer.files[0]);
};
dialog.oncancel = (event) => {
  if (cancel) event.preventDefault();
  cancel?.();
};
dialog.onclose = () => byId("import").focus();
addEventListener("beforeunload", (event) => cancel && event.preventDefault());
