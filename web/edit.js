// Adding and editing an item, in a form made of the table's fields. The rules are the API's: it is
// asked, and its refusal is put in words beside the field.

import { byId, call, caller, deleting, drop, element, find, focusOn, minute, redraw, settle, table, tell, titleOf, wait } from "./roster.js";
import { inWords, labelOf, nameOf, text } from "./tables.js";

const title = element("h2", { id: "editor-title", dir: "auto" });
const inputs = element("div", { id: "fields" });
const conflict = element("div", { hidden: true });
const problem = element("p", { className: "wrong", role: "alert" });
const changed = element("p", { id: "changed" });
const cancel = element("button", { type: "button", onclick: () => editor.close() }, "Cancel");
const saveButton = element("button", { className: "main" }, "Save");
const form = element("form", { noValidate: true });
const editor = element("dialog", { id: "editor", aria: { labelledby: "editor-title" } }, form);
form.append(title, element("p", { className: "problem", role: "status" }), inputs, conflict, problem);
form.append(element("footer", {}, changed, cancel, saveButton));
document.body.append(editor);

let before = null; // the item as the person saw it; null: a new one
let fields = []; // each with its input
let saving = null; // stops the request under way
let warned = false;
let left = Promise.resolve(); // settled when the URL of the item shown last is left

// ---- Fields: each value as the text of its input, and back

/** Return a time as an input has it: local, without seconds. */
const local = (time) => new Date(time - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);

function toText({ kind }, value) {
  if (value === null || value === undefined) return "";
  return kind === "moment" ? local(new Date(value)) : String(value).replace(/\r\n?/g, "\n");
}

function fromText({ kind, nullable, options, schema }, text) {
  if (text === "") return nullable ? null : /text|email/.test(kind) ? "" : undefined;
  if (kind === "yesno") return text === "true";
  if (kind === "choice") return options.find((option) => String(option) === text);
  if (kind === "moment") return new Date(text).toISOString();
  return (kind === "number" && !schema.exact) || kind === "reference" ? Number(text) : text;
}

/** Give a field an input with a value, and what belongs to it. */
function makeInput(field, value) {
  const { kind, name, required, nullable, options, schema } = field;
  const properties = { id: `field-${name}`, autocomplete: "off" };
  let input;
  if (kind === "reference") input = element("select", properties);
  else if (kind === "choice" || (kind === "yesno" && nullable)) {
    const choices = (options[0] === undefined ? [true, false] : options).map((option) =>
      element("option", { value: String(option) }, kind === "yesno" ? text(field, option) : String(option)),
    );
    input = element("select", properties, ...(required && !nullable ? [] : [element("option", { value: "" }, "–")]), ...choices);
  } else if (kind === "text" && ((schema.maxLength ?? 0) > 255 || String(value ?? "").includes("\n"))) {
    input = element("textarea", { ...properties, rows: 4, dir: "auto" });
  } else {
    const type = { email: "email", yesno: "checkbox", number: "number", date: "date", moment: "datetime-local" }[kind] ?? "text";
    input = element("input", { ...properties, type, ...(type === "number" && { step: "any" }), dir: "auto", spellcheck: kind === "text" });
  }
  const search = kind === "reference" && caller.writes ? [referenceFor(field, input, toText(field, value))] : [];
  if (input.type === "checkbox") input.checked = Boolean(value);
  else input.value = toText(field, value);
  input.setAttribute("aria-describedby", `${input.id}-problem`);
  input[input.matches("select, [type=checkbox]") ? "disabled" : "readOnly"] = !caller.writes;
  Object.assign(field, { input, parts: [...search, input] });
}

function setValue(field, value) {
  const old = field.parts;
  makeInput(field, value);
  old[0].before(...field.parts);
  for (const part of old) part.remove();
}

const textOf = ({ input }) => (input.type === "checkbox" ? String(input.checked) : input.value);

/** Return a search, and a select that it fills with rows of another table. */
function referenceFor({ to }, select, value) {
  const option = (id, label) => element("option", { value: id }, label);
  const fill = (...found) => {
    const now = select.value;
    const kept = [...select.options].filter((other) => other.value === now || !other.value);
    select.replaceChildren(...kept, ...found.filter((other) => other.value !== now));
    select.size = found.length && Math.min(select.length, 6); // open, to choose from
  };
  const close = () => (select.size = 0);
  const look = async () => {
    const q = search.value.trim();
    const { items } = await call(`${to.path}?${new URLSearchParams({ limit: 8, ...(q && { q }) })}`);
    fill(...items.map((item) => option(String(item.id), labelOf(to, item))));
    tell(items.length ? `${items.length} found` : `No ${to.many} found.`);
    return items;
  };
  let typing;
  const search = element("input", { type: "search", autocomplete: "off", ariaLabel: `Search ${to.many}`, placeholder: `Search ${to.many}` });
  search.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(look, 150);
  };
  search.onkeydown = async (event) => {
    if (event.key === "ArrowDown") select.focus();
    if (event.key !== "Enter") return;
    event.preventDefault(); // it takes the first that is found
    clearTimeout(typing);
    const [first] = await look();
    if (first) select.value = first.id;
    close();
  };
  select.onchange = close;
  select.append(option("", "–"));
  if (value) {
    select.append(option(value, `#${value}`));
    select.value = value;
    nameOf(to, value).then((label) => (select.selectedOptions[0].textContent = label));
  }
  return search;
}

// ---- The dialog

const isChanged = (field) => textOf(field) !== field.was;
const isDirty = () => editor.open && fields.some(isChanged);

/** Return what to send: of a change, only the fields that differ. */
const typed = () => {
  const sent = fields.filter((field) => isChanged(field) || (!before && field.required));
  return Object.fromEntries(sent.map((field) => [field.name, fromText(field, textOf(field))]).filter(([, value]) => value !== undefined));
};

/** Draw the fields with an item's values. */
function draw(item) {
  const known = before ? table.change : table.create;
  fields = known.filter(({ kind }) => kind !== "other").map((field) => ({ ...field }));
  for (const field of fields) {
    makeInput(field, item ? item[field.name] : field.default);
    field.was = textOf(field);
  }
  const rest = table.read.filter(({ name }) => before && !/^(id|version|created_at|updated_at)$/.test(name) && !fields.some((field) => field.name === name));
  inputs.replaceChildren(
    ...fields.flatMap(({ input, parts, label, required }) => [
      element("label", { htmlFor: input.id }, label, ...(required || before ? [] : [element("small", {}, " (optional)")])),
      ...parts,
      element("p", { id: `${input.id}-problem`, className: "wrong" }),
    ]),
    ...rest.map((field) => element("p", { className: "fixed" }, element("b", {}, `${field.label}: `), text(field, before[field.name]))),
  );
}

export const add = () => edit(null);

/** Open the form for an item, or for a new one (null). */
export async function edit(item) {
  await left;
  if (editor.open) {
    if (item && before?.id === item.id) return;
    editor.close();
    await left;
  }
  before = item;
  warned = false;
  title.textContent = item ? (caller.writes ? `Edit ${titleOf(item)}` : titleOf(item)) : `Add a ${table.one}`;
  changed.textContent = item?.updated_at ? `Changed ${minute(item.updated_at)}` : "";
  saveButton.hidden = !caller.writes;
  cancel.textContent = caller.writes ? "Cancel" : "Close";
  draw(item);
  compare(null);
  complain([]);
  if (item && location.hash !== `#${item.id}`) history.pushState({ opened: true }, "", `#${item.id}`);
  editor.showModal();
  fields[0]?.input.focus();
}

/** Say at each field what is wrong with it, and below what else is. */
function complain(problems, message = "") {
  for (const { name, input } of fields) {
    const found = problems.find(({ loc }) => loc.at(-1) === name);
    byId(`${input.id}-problem`).textContent = found ? inWords(found) : "";
    input.ariaInvalid = String(Boolean(found));
  }
  const others = problems.filter(({ loc }) => !fields.some(({ name }) => name === loc.at(-1)));
  problem.textContent = [message, ...others.map((other) => `${other.loc.at(-1)}: ${inWords(other)}`)].filter(Boolean).join(" ");
  form.querySelector("[aria-invalid=true]")?.focus();
}

/** Store what was typed, or chosen. */
async function save() {
  if (saving) return;
  for (const field of conflict.hidden ? [] : fields)
    if (form.elements[`whose-${field.name}`]?.value === "theirs") setValue(field, before[field.name]);
  compare(null);
  const partial = fields.filter(({ input }) => input.validity.badInput);
  if (partial.length) return complain(partial.map(({ name }) => ({ loc: [name], msg: "This is not complete." })));
  const body = typed();
  if (before && !Object.keys(body).length) return editor.close();
  complain([]);
  saveButton.textContent = "Saving…";
  saving = new AbortController();
  const { signal } = saving;
  try {
    show(await send(body, signal));
  } catch (error) {
    if (!signal.aborted) await recover(error, body, signal);
  } finally {
    saving = null;
    saveButton.textContent = "Save";
  }
}

async function send(body, signal) {
  const request = before ? { method: "PATCH", body, version: before.version, signal } : { method: "POST", body, signal };
  const path = before ? `${table.path}${before.id}` : table.path;
  try {
    return await call(path, request);
  } catch (error) {
    if (error.status !== 409 || !deleting.size) throw error;
    await settle(); // a row that is about to be deleted may be what it conflicts with
    return call(path, request);
  }
}

/** Close the form, and show an item in the list as it is stored. */
function show(item) {
  before = item;
  for (const field of fields) field.was = textOf(field);
  redraw(item);
  editor.close();
  focusOn(item.id);
  tell(`${titleOf(item)} is saved.`);
}

/** Make the best of a refusal. */
async function recover(error, body, signal) {
  const same = (item) => item && Object.entries(body).every(([name, value]) => item[name] === (value?.trim?.() ?? value));
  try {
    if (error.status === 412) {
      const theirs = await call(`${table.path}${before.id}`, { signal });
      // Our own change, the answer to which got lost, makes a new version too.
      return same(theirs) ? show(theirs) : compare(theirs);
    }
    if (error.status === 409 && error.unsure && !before && table.email) {
      const { items } = await call(`${table.path}?${new URLSearchParams({ [table.email]: body[table.email] })}`, { signal });
      if (same(items[0])) return show(items[0]);
    }
    if (error.status !== 404) return complain(error.fields, error.fields.length ? "" : error.message);
  } catch (again) {
    if (signal.aborted) return;
    if (again.status !== 404) return complain([], again.message);
  }
  // The item is gone: keep what was typed.
  const values = fields.map((field) => [field.name, fromText(field, textOf(field))]);
  drop(before.id);
  before = null;
  draw(Object.fromEntries(values));
  for (const field of fields) field.was = "";
  complain([], `This ${table.one} has been deleted meanwhile. Save adds it again, as a new one.`);
}

/** Show yours beside theirs, field by field, to choose from; null: show the fields to type in. */
function compare(theirs) {
  conflict.hidden = !theirs;
  inputs.hidden = Boolean(theirs);
  conflict.replaceChildren();
  if (!theirs) return;
  const said = element("p", { tabIndex: -1 }, `This ${table.one} has changed since you opened it. Which do you want?`);
  conflict.append(said);
  for (const field of fields) {
    const mine = textOf(field);
    // What only they have changed is theirs, unless you say otherwise.
    const isMine = isChanged(field);
    field.was = toText(field, theirs[field.name]);
    if (mine === field.was) continue;
    const choice = (whose, value, shown, checked) => {
      const radio = element("input", { type: "radio", name: `whose-${field.name}`, value, checked });
      const words = element("b", { dir: "auto" }, shown || "(nothing)");
      return element("label", { className: "choice" }, radio, whose, words);
    };
    const pair = [choice("Yours", "mine", text(field, fromText(field, mine)), isMine), choice("Theirs", "theirs", text(field, theirs[field.name]), !isMine)];
    conflict.append(element("fieldset", {}, element("legend", {}, field.label), ...pair));
  }
  before = theirs;
  redraw(theirs);
  said.focus();
}

/** Return whether the form may be closed: not by mistake, with something in it that is not saved. */
function mayClose() {
  if (warned || !isDirty()) return true;
  warned = true;
  problem.textContent = "This is not saved. Press Escape once more to discard it.";
  return false;
}

form.onsubmit = (event) => {
  event.preventDefault();
  save();
};
editor.oncancel = (event) => mayClose() || event.preventDefault();
editor.onclose = () => {
  saving?.abort();
  if (location.hash && history.state?.opened) {
    // Give up at some time: a browser that does not go back says nothing.
    left = Promise.race([new Promise((resolve) => addEventListener("popstate", resolve, { once: true })), wait(1)]);
    history.back();
  } else if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  if (document.activeElement !== document.body) return; // where it was before
  if (before) focusOn(before.id);
  else byId("add").focus();
};
// The browser's Back closes the form, too.
addEventListener("popstate", () => {
  if (!editor.open || !before || location.hash === `#${before.id}`) return;
  if (mayClose()) editor.close();
  else history.pushState({ opened: true }, "", `#${before.id}`);
});
addEventListener("beforeunload", (event) => isDirty() && event.preventDefault());
