// Importing a list: read it, show its rows as they would be stored, ask the API what it would do with
// them, and then do it.

import { byId, call, element, load, many, number, settle, table, titleOf } from "./roster.js";
import { decode, guessColumns, guessEncoding, readRows, toItems, ENCODINGS } from "./guess.js";
import { csv, download } from "./more.js";
import { inWords, text } from "./tables.js";

const BYTES = 900_000; // the API takes 1 MiB at once, and 1000 rows
const SHOWN = 100; // on the screen; the report has all
const fields = table.create.filter(({ kind }) => kind !== "other");
// What no two rows share, and the list can be asked for.
const key = fields.find(({ kind, name }) => kind === "email" && table.parameters[name])?.name;

// ---- Asking the API

const undecided = (items) => items.filter(({ result }) => !result);

/** Return what is sent of an item: the rest of what is too long is not needed to be told so. */
const toSend = ({ values }) =>
  Object.fromEntries(fields.filter(({ name }) => values[name] !== undefined).map(({ name, schema }) =>
    [name, typeof values[name] === "string" ? values[name].slice(0, 2 * (schema.maxLength ?? 5000) + 1) : values[name]]));

/** Work on parts of a list, some at once, until all is done or stopped. */
async function each(parts, state, work, atOnce = 4) {
  const queue = parts.values();
  const worker = async () => {
    for (const part of queue) {
      if (state.stop) return;
      await work(part, state.signal);
      state.done(part.length ?? 1);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

function inLots(items) {
  const lots = [[]];
  let size = 0;
  for (const item of items) {
    const bytes = new TextEncoder().encode(JSON.stringify(toSend(item))).length + 1;
    if (size + bytes > BYTES || lots.at(-1).length === 900) size = lots.push([]) * 0;
    lots.at(-1).push(item);
    size += bytes;
  }
  return lots;
}

/**
 * Store a lot, and note at each item what became of it: those that are refused or skipped are left out,
 * and the others are sent again.
 *
 * `dry` finds out the same without storing any: it adds an item that the API must refuse, and it stores
 * all or none. Where a field is unique, that is the first item once more: so the API names those that are taken.
 */
async function send(lot, signal, dry) {
  for (let asked = undecided(lot); asked.length; asked = undecided(asked)) {
    const body = [...asked.map(toSend), ...(dry ? [key ? toSend(asked[0]) : null] : [])];
    const answer = await call(`${table.path}bulk`, { method: "POST", body, signal }).catch((error) => error);
    if (answer.items) return asked.forEach((item, at) => Object.assign(item, { result: "added", stored: answer.items[at] }));
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
      const taken = answer.status === 409;
      // The check found it free: an attempt whose answer got lost has taken it.
      const stored = answer.unsure && !dry && key ? await read(item, signal) : undefined;
      const ours = stored && fields.every(({ name }) => !(name in item.values) || stored[name] === item.values[name]);
      Object.assign(item, ours ? { result: "added", stored } : { result: taken ? "skipped" : "refused", why: inWords(problem), taken });
      decided += 1;
    }
    if (dry && (answer.status === 409 || !decided)) return;
    if (!decided) throw answer; // sent again, it would be refused again
  }
}

/** Return the row that has an item's key. */
async function read({ values }, signal) {
  const { items } = await call(`${table.path}?${new URLSearchParams({ [key]: values[key] })}`, { signal });
  return items[0];
}

/** Find the rows that an item refers to by words. */
async function resolve(item, signal) {
  for (const { name, to, label } of fields.filter(({ kind }) => kind === "reference")) {
    if (typeof item.values[name] !== "string") continue;
    const { items } = await call(`${to.path}?${new URLSearchParams({ q: item.values[name], limit: 2 })}`, { signal });
    if (items.length === 1) item.values[name] = items[0].id;
    else Object.assign(item, { result: "refused", why: `${label}: ${items.length ? "more than one" : "none"} of the ${to.many} found.` });
  }
}

// ---- The dialog

const title = element("h2", { id: "importer-title", tabIndex: -1 });
const content = element("div", { className: "import" });
const dialog = element("dialog", { aria: { labelledby: "importer-title" } }, title, element("p", { className: "problem", role: "status" }), content);
document.body.append(dialog);
let running = null; // what is under way, as begin() returns it
let take = null; // takes a file that is chosen or dropped

/** Show one step of the import: its title, what is in it, its buttons. */
function step(words, parts, ...buttons) {
  title.textContent = words;
  content.replaceChildren(...parts, element("footer", {}, ...buttons));
  if (!dialog.open) dialog.showModal();
  title.focus();
}

const button = (words, onclick, className = "") => element("button", { onclick, className }, words);
const closing = (words, className) => button(words, () => dialog.close(), className);

/** Ask for a file, or for lines that are pasted. */
export async function open() {
  await settle();
  const input = element("input", { type: "file", id: "file" });
  const pasted = element("textarea", { id: "pasted", rows: 3, dir: "auto" });
  const said = element("p", { className: "wrong", role: "alert" });
  const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());
  take = async (blob) => {
    said.textContent = "";
    const bytes = await bytesOf(blob);
    try {
      preview(bytes, ...guessEncoding(bytes, navigator.languages));
    } catch (error) {
      if (error.constructor !== Error) throw error;
      said.textContent = error.message;
    }
  };
  input.onchange = () => input.files[0] && take(input.files[0]);
  step(
    `Import ${table.many}`,
    [
      element("label", { className: "drop" }, element("b", {}, "Choose a CSV file, or drop it here"), input),
      element("label", { htmlFor: "pasted" }, `Or paste lines, as a table has them${key ? ", or the To: line of an email" : ""}`),
      ...[pasted, said, element("p", { id: "hint" }, "You see what becomes of each line before anything is stored.")],
    ],
    closing("Cancel"),
    button("Read these lines", () => take(new Blob([pasted.value])), "main"),
  );
  input.setAttribute("aria-describedby", "hint");
  input.focus();
}

/** Show the first rows as they would be stored, and the choices that make them so. */
function preview(bytes, encoding, certain) {
  const rows = readRows(decode(bytes, encoding));
  if (!rows.length) throw new Error("There is nothing in this file.");
  const { header, titles, rows: below, columns } = guessColumns(rows, fields);
  const selectFor = (id, label, options, value, onchange) => {
    const choices = options.map(([code, words]) => element("option", { value: code }, words));
    const select = element("select", { id, ariaLabel: label, onchange: () => onchange(select.value) }, ...choices);
    select.value = value;
    return select;
  };
  const example = (column) => below.find(({ cells }) => cells[column])?.cells[column].slice(0, 30) ?? "";
  const named = titles.map((words, column) => [String(column), words || `Column ${column + 1}: ${example(column)}`]);
  const draw = (focus) => {
    const items = toItems(below, fields, columns);
    const choices = fields.map(({ name, label, kind }) => {
      // The name can have several columns: one more select than it has.
      const places = name === table.title ? [...columns[name], ""] : [columns[name][0] ?? ""];
      const selects = places.map((column, at) =>
        selectFor(`column-${name}-${at}`, at ? `${label}, then` : label, [["", at ? "and …" : "(none)"], ...named], String(column), (value) => {
          columns[name].splice(at, 1, ...(value === "" ? [] : [Number(value)]));
          draw(`column-${name}-${Math.min(at, columns[name].length)}`);
        }),
      );
      return element("p", { className: "columns" }, element("b", {}, kind === "email" ? "Address" : label), ...selects);
    });
    if (!certain) {
      const known = Object.entries(ENCODINGS).map(([code, [words]]) => [code, `${words} (${code})`]);
      const select = selectFor("encoding", "Encoding", known, encoding, (code) => preview(bytes, code, false) ?? byId("encoding").focus());
      choices.push(element("p", { className: "columns" }, element("b", {}, "Letters"), select, "Are the names below right?"));
    }
    const missing = fields.filter(({ required, name, kind }) => required && !columns[name].length && !(name === "name" && key && titles.length === 1));
    const go = button(`Check ${many(undecided(items).length)}`, () => check(items), "main");
    go.disabled = missing.length || !undecided(items).length;
    const left = items.length - undecided(items).length;
    const said = missing.length
      ? `Choose which column is: ${missing.map(({ label }) => label).join(", ")}.`
      : `${header ? `Line ${header} names the columns. ` : ""}${left ? `${number(left)} of the lines ${left === 1 ? "is" : "are"} left out.` : ""}`;
    step(
      "Is this right?",
      [...choices, grid("The first rows", items.slice(0, 20)), element("p", { role: "status" }, said)],
      button("Back", open),
      go,
    );
    if (focus) byId(focus).focus();
  };
  draw();
}

/** Return a table of items in a frame that scrolls. */
function grid(label, items) {
  const shown = fields.filter(({ name }) => items.some(({ values }) => values[name] !== undefined));
  const cell = ({ values, changes }, field) => {
    const value = element("span", { dir: "auto" }, values[field.name] === undefined ? "" : String(values[field.name]));
    return changes && field.name in changes ? element("td", {}, element("del", {}, text(field, changes[field.name])), " → ", value) : element("td", {}, value);
  };
  const rows = items.map((item) =>
    element("tr", { className: item.result }, element("td", {}, String(item.line)), ...shown.map((field) => cell(item, field)), element("td", {}, item.why)),
  );
  const heads = ["Line", ...shown.map((field) => field.label), "Note"].map((words) => element("th", { scope: "col" }, words));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: label }, table);
}

/** Show a bar, and a button that stops; return the state that the work looks at. */
function begin(words, all) {
  const bar = element("progress", { max: all || 1, value: 0, ariaLabel: words });
  const said = element("p", {});
  const controller = new AbortController();
  running = {
    stop: false,
    signal: controller.signal,
    done: (by) => (said.textContent = `${number((bar.value += by))} of ${many(all)}`),
    cancel() {
      running.stop = true;
      said.textContent = "Stopping…";
      // What is under way is finished; unless there is no connection.
      setTimeout(() => controller.abort(), 3000);
    },
  };
  step(words, [bar, said], button("Cancel", running.cancel));
  return running;
}

/** Do some work with a bar; return why it ended early, "" if it did not. */
async function withBar(words, all, work) {
  const state = begin(words, all);
  try {
    await work(state);
    return state.stop ? "It was cancelled." : "";
  } catch (error) {
    if (error.constructor === TypeError) throw error;
    return state.stop ? "It was cancelled." : error.message;
  } finally {
    running = null;
  }
}

/** Ask the API, and show what would happen. */
async function check(items) {
  const why = await withBar("Checking the list", undecided(items).length, async (state) => {
    await each(undecided(items), { ...state, done() {} }, resolve);
    await each(inLots(undecided(items)), state, (lot, signal) => send(lot, signal, true), 1);
  });
  if (why) return step("The check has stopped", [element("p", { className: "wrong", role: "alert" }, why)], closing("Close"));
  plan(items);
}

function plan(items) {
  const fresh = undecided(items).length;
  const updates = items.filter(({ changes }) => changes).length;
  const taken = items.filter(({ taken, old }) => taken && !old);
  const compare = taken.length && key ? [button(`Update ${many(taken.length)} too …`, () => prepareUpdates(items, taken))] : [];
  const words = [fresh && `Import ${many(fresh)}`, updates && `${fresh ? "u" : "U"}pdate ${many(updates)}`].filter(Boolean).join(", ");
  const go = words ? [button(words, () => run(items), "main")] : [];
  step("Nothing is stored yet", summary(items, "will be added"), closing("Cancel"), ...compare, ...go);
}

/** Show what the list would change of rows that are there already. */
async function prepareUpdates(items, taken) {
  const why = await withBar("Comparing", taken.length, (state) =>
    each(taken, state, async (item, signal) => {
      const old = await read(item, signal);
      const differ = fields.filter(({ name }) => name !== key && old && name in item.values && old[name] !== item.values[name]);
      const same = { why: `This ${table.one} is there already, with the same values.` };
      Object.assign(item, { old }, !differ.length ? same : { result: "will be updated", why: "", changes: Object.fromEntries(differ.map(({ name }) => [name, old[name]])) });
    }),
  );
  plan(items);
  if (why) content.prepend(element("p", { className: "wrong", role: "alert" }, why));
}

const pick = (values, names) => Object.fromEntries(Object.keys(names).map((name) => [name, values[name]]));

/** Store all that the API takes, and say how it went. */
async function run(items) {
  const updates = items.filter(({ changes }) => changes);
  const why = await withBar("Importing", undecided(items).length + updates.length, async (state) => {
    await each(inLots(undecided(items)), state, (lot, signal) => send(lot, signal, false), 1);
    await each(updates, state, async (item, signal) => {
      const body = pick(item.values, item.changes);
      const request = { method: "PATCH", body, version: item.old.version, signal };
      await outcome(item, call(`${table.path}${item.old.id}`, request), "updated");
    });
  });
  for (const item of items.filter(({ result }) => !result || result === "will be updated")) Object.assign(item, { result: "left out", why });
  report(why ? "The import has stopped" : "The import is done", items, why);
}

/** Note at an item what became of a request about it. */
async function outcome(item, request, result) {
  try {
    Object.assign(item, { result, stored: await request });
  } catch (error) {
    if (!error.status) throw error;
    const changed = `This ${table.one} has changed meanwhile, and is kept as it is.`;
    Object.assign(item, error.status === 404 ? { result } : { result: "refused", why: error.status === 412 ? changed : error.message });
  }
}

function report(words, items, why) {
  const titles = ["line", ...fields.map(({ name }) => name), "result", "why"];
  const cells = (item) => [item.line, ...fields.map(({ name }) => item.values[name]), item.result, item.why];
  const done = items.filter(({ result }) => result === "added" || result === "updated");
  const said = why ? [element("p", { className: "wrong", role: "alert" }, why)] : [];
  const back = done.length ? [button("Undo this import", () => undo(items, done))] : [];
  const save = button("Download report", () => download("import-report.csv", csv(titles, items.map(cells))));
  step(words, [...said, ...summary(items, "added")], ...back, save, closing("Close", "main"));
  load(true);
}

/** Delete what an import added, and put back what it changed, unless it has changed since. */
async function undo(items, done) {
  const why = await withBar("Undoing the import", done.length, (state) =>
    each(done, state, (item, signal) => {
      const { id, version } = item.stored;
      const request = item.result === "added" ? { method: "DELETE" } : { method: "PATCH", body: item.changes };
      return outcome(item, call(`${table.path}${id}`, { ...request, version, signal }), item.result === "added" ? "deleted again" : "put back");
    }),
  );
  report(why ? "The undo has stopped" : "The import is undone", items, why);
}

/** Return how many have which result, and the lines that there is something to say about. */
function summary(items, good) {
  const counts = { [good]: 0, skipped: 0, refused: 0 };
  for (const { result } of items) counts[result || good] = (counts[result || good] ?? 0) + 1;
  const figures = Object.entries(counts).map(([word, n]) => element("li", {}, element("b", {}, number(n)), ` ${word}`));
  const noted = items.filter(({ why, changes }) => why || changes);
  const more = noted.length > SHOWN ? [element("p", {}, `And ${number(noted.length - SHOWN)} more, in the report.`)] : [];
  return [element("ul", { className: "figures" }, ...figures), ...(noted.length ? [grid("Lines with a note", noted.slice(0, SHOWN))] : []), ...more];
}

dialog.ondragover = (event) => event.preventDefault();
// Anywhere: a file that misses its place would open instead of the page.
dialog.ondrop = (event) => {
  event.preventDefault();
  if (!running) take(event.dataTransfer.files[0]);
};
dialog.oncancel = (event) => {
  if (!running) return;
  event.preventDefault();
  running.cancel();
};
dialog.onclose = () => byId("import").focus();
addEventListener("beforeunload", (event) => running && event.preventDefault());
