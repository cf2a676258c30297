// Adding and editing an item, in a form made of the table's fields. The rules are the API's: it is asked, and its refusal is put in
// words beside the field.

import { byId, call, caller, deleting, drop, element, focusOn, listOf, minute, named, redraw, settle, table, tell } from "./roster.js";
import { inWords, labelOf, nameOf, others, text } from "./tables.js";

const editor = byId("editor");
const form = editor.firstElementChild;
const conflict = byId("conflict");
let before = null; // the item as the person saw it; null: a new one
let fields = []; // each with its input, and the text that this had
let saving = null; // stops the request under way
let warned = false;
let url = ""; // of the item that is open
/** Return a value as the text of its field's input; fromText() is the way back. */
function toText({ kind }, value) {
  if (value === null || value === undefined) return "";
  // As an input has it: local, without seconds.
  const local = (time) => new Date(time - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
  return kind === "moment" ? local(new Date(value)) : String(value).replace(/\r\n?/g, "\n");
}
function fromText({ kind, nullable, options, schema }, text) {
  if (text === "") return nullable ? null : /text|email/.test(kind) ? "" : undefined;
  if (/choice|yesno/.test(kind)) return options.find((option) => String(option) === text);
  if (kind === "moment") return new Date(text).toISOString();
  return (kind === "number" && !schema.exact) || kind === "reference" ? Number(text) : text;
}
const textOf = ({ input }) => (input.type === "checkbox" ? String(input.checked) : input.value);
const isChanged = (field) => textOf(field) !== field.was;
const isDirty = () => editor.open && fields.some(isChanged);
/** Give a field an input with a value; a reference has a search above it. */
function makeInput(field, value) {
  const { kind, name, nullable, options, schema, to, parts: old = [] } = field;
  const properties = { id: `field-${name}`, autocomplete: "off", dir: "auto", "aria-describedby": `field-${name}-problem` };
  const type = { email: "email", yesno: "checkbox", number: "number", date: "date", moment: "datetime-local" }[kind] ?? "text";
  const option = (value, ...shown) => element("option", { value: String(value) }, ...shown);
  const now = toText(field, value);
  const select = (...choices) => element("select", properties, option("", "–"), choices);
  let input;
  if (kind === "reference") {
    input = select(now && option(now, `#${now}`));
    if (now) nameOf(to, now).then((label) => (input.options[1].textContent = label));
  } else if (kind === "choice" || (kind === "yesno" && nullable)) input = select(...options.map((value) => option(value, text(field, value))));
  else if (schema.maxLength > 255 || now.includes("\n")) input = element("textarea", { ...properties, rows: 4 });
  else input = element("input", { ...properties, type, step: "any", spellcheck: kind === "text" });
  if (input.type === "checkbox") input.checked = Boolean(value);
  else input.value = now;
  input[input.matches("select, [type=checkbox]") ? "disabled" : "readOnly"] = !caller.writes;
  Object.assign(field, { input, parts: kind === "reference" && caller.writes ? [searchFor(to, input), input] : [input] });
  old[0]?.before(...field.parts);
  old.forEach((part) => part.remove());
}
/** Return a search that fills a select with rows of another table. */
function searchFor(to, select) {
  const search = element("input", { type: "search", autocomplete: "off", ariaLabel: `Search ${to.many}`, placeholder: `Search ${to.many}` });
  const look = async () => {
    const { items } = await call(listOf(to.path, { q: search.value.trim(), limit: 8 }));
    const kept = [...select.options].filter(({ selected, value }) => selected || !value);
    const found = items.filter(({ id }) => String(id) !== select.value);
    select.replaceChildren(...kept, ...found.map((item) => element("option", { value: item.id }, labelOf(to, item))));
    select.size = Math.min(select.length, 6); // open, to choose from
    tell(`${items.length} found`);
    return items[0];
  };
  let typing;
  search.oninput = () => {
    clearTimeout(typing);
    typing = setTimeout(look, 150);
  };
  search.onkeydown = async (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // Enter takes the first that is found
    select.value = (await look())?.id ?? select.value;
    select.size = 0;
  };
  select.onchange = () => (select.size = 0);
  return search;
}
function draw(item) {
  fields = (before ? table.change : table.create).filter(({ kind }) => kind !== "other").map((field) => ({ ...field }));
  byId("fields").replaceChildren();
  for (const field of fields) {
    makeInput(field, item ? item[field.name] : field.schema.default);
    field.was = textOf(field);
    const optional = !field.required && !before && element("small", {}, " (optional)");
    const label = element("label", { htmlFor: field.input.id }, field.label, optional);
    byId("fields").append(label, ...field.parts, element("p", { id: `${field.input.id}-problem`, className: "wrong" }));
  }
  const fixed = before ? others(...fields.map(({ name }) => name)) : [];
  byId("fields").append(...fixed.map((field) => element("p", {}, element("b", {}, `${field.label}: `), text(field, before[field.name]))));
}
export const add = () => edit(null);
/** Open the form for an item, or for a new one (null). */
export function edit(item) {
  if (editor.open && url === `#${item?.id}`) return;
  close();
  before = item;
  warned = false;
  byId("editor-title").replaceChildren(...(item ? [caller.writes ? "Edit " : "", named(item)] : [`Add ${/^[aeiou]/i.test(table.one) ? "an" : "a"} ${table.one}`]));
  byId("changed").textContent = item?.updated_at ? `Changed ${minute(item.updated_at)}` : "";
  byId("save").hidden = !caller.writes;
  byId("cancel").textContent = caller.writes ? "Cancel" : "Close";
  draw(item);
  compare(null);
  complain([]);
  url = item ? `#${item.id}` : "";
  // The entry that a closed form left behind is used again.
  if (url && location.hash !== url) history[history.state?.closed ? "replaceState" : "pushState"](null, "", url);
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
  byId("editor-problem").textContent = [message, ...others.map((other) => `${other.loc.at(-1)}: ${inWords(other)}`)].join(" ").trim();
  form.querySelector("[aria-invalid=true]")?.focus();
}
/** Store what was typed, or chosen: of a change, only the fields that differ. */
async function save() {
  if (saving) return;
  for (const field of fields) if (form.elements[`whose-${field.name}`]?.value === "theirs") makeInput(field, before[field.name]);
  compare(null);
  const partial = fields.filter(({ input }) => input.validity.badInput);
  complain(partial.map(({ name }) => ({ loc: [name], msg: "This is not complete." })));
  if (partial.length) return;
  const sent = fields.filter((field) => isChanged(field) || (!before && field.required));
  const body = Object.fromEntries(sent.map((field) => [field.name, fromText(field, textOf(field))]).filter(([, value]) => value !== undefined));
  if (before && !sent.length) return close();
  byId("save").textContent = "Saving…";
  saving = new AbortController();
  const { signal } = saving;
  let again = false;
  try {
    show(await call(`${table.path}${before?.id ?? ""}`, { method: before ? "PATCH" : "POST", body, version: before?.version, signal }));
  } catch (error) {
    again = error.status === 409 && deleting.size;
    if (!signal.aborted && !again) await recover(error, body, signal);
  }
  saving = null;
  byId("save").textContent = "Save";
  if (!again) return;
  await settle(); // what it conflicts with was about to be deleted
  save();
}
function show(item) {
  for (const field of fields) field.was = textOf(field);
  redraw(item);
  close();
  focusOn(item.id);
  tell(named(item), " is saved.");
}
async function recover(error, body, signal) {
  const same = (item) => item && Object.entries(body).every(([name, value]) => item[name] === (value?.trim?.() ?? value));
  try {
    if (error.status === 412) {
      const theirs = await call(`${table.path}${before.id}`, { signal });
      // Our own change, the answer to which got lost, makes a new version too.
      return same(theirs) ? show(theirs) : compare(theirs);
    }
    if (error.status === 409 && error.unsure && !before && table.email) {
      const { items } = await call(listOf(table.path, { [table.email]: body[table.email] }), { signal });
      if (same(items[0])) return show(items[0]);
    }
    throw error;
  } catch (again) {
    if (signal.aborted) return;
    if (again.status !== 404) return complain(again.fields ?? [], again.fields?.length ? "" : again.message);
  }
  // The item is gone: keep what was typed.
  const values = Object.fromEntries(fields.map((field) => [field.name, fromText(field, textOf(field))]));
  drop(before.id);
  before = null;
  draw(values);
  for (const field of fields) field.was = "";
  complain([], `This ${table.one} has been deleted meanwhile. Save adds it again, as a new one.`);
}
/** Show yours beside theirs, field by field, to choose from; null: show the fields to type in. */
function compare(theirs) {
  conflict.hidden = !theirs;
  byId("fields").hidden = Boolean(theirs);
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
    const choice = (whose, value, checked) => {
      const radio = element("input", { type: "radio", name: `whose-${field.name}`, value: whose.toLowerCase(), checked });
      return element("label", { className: "choice" }, radio, whose, element("b", { dir: "auto" }, text(field, value) || "(nothing)"));
    };
    const pair = [choice("Yours", fromText(field, mine), isMine), choice("Theirs", theirs[field.name], !isMine)];
    conflict.append(element("fieldset", {}, element("legend", {}, field.label), pair));
  }
  before = theirs;
  redraw(theirs);
  said.focus();
}
/** Return whether the form may be closed: not by mistake, with something in it that is not saved. */
function mayClose() {
  if (warned || !isDirty()) return true;
  warned = true;
  byId("editor-problem").textContent = "This is not saved. Press Escape once more to discard it.";
  return false;
}
form.onsubmit = (event) => {
  event.preventDefault();
  save();
};
function close() {
  if (url && location.hash === url) history.replaceState({ closed: true }, "", location.pathname + location.search);
  if (editor.open) editor.close();
}
byId("cancel").onclick = close;
editor.oncancel = (event) => {
  event.preventDefault();
  if (mayClose()) close();
};
editor.onclose = () => {
  if (editor.open) return; // already for another item
  close(); // browsers do not ask a second time
  saving?.abort();
  // If the focus is not back where it was, that is gone.
  if (document.activeElement !== document.body && !editor.contains(document.activeElement)) return;
  if (before) focusOn(before.id);
  else byId("add").focus();
};
// The browser's Back closes the form, too.
addEventListener("popstate", () => {
  if (!editor.open || !url || location.hash === url) return;
  if (mayClose()) editor.close();
  else history.pushState(null, "", url);
});
addEventListener("beforeunload", (event) => isDirty() && event.preventDefault());
