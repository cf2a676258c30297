// Adding and editing a user. The API's rules are the API's: it is asked, and its refusal is put in
// words beside the field.

import { breakable, byId, call, count, deleting, element, find, row, tell } from "./roster.js";
import { inWords } from "./words.js";

const editor = byId("editor");
const form = editor.querySelector("form");
const FIELDS = ["name", "email"];
let before = null; // the user as the person saw it; null: a new one
let saving = null; // stops the request under way
let warned = false;

const typed = () => Object.fromEntries(FIELDS.map((field) => [field, byId(field).value]));

/** Return the fields that differ: what a PATCH leaves out stays as it is. */
function changes() {
  const old = before ?? { name: "", email: "" };
  return Object.fromEntries(Object.entries(typed()).filter(([field, text]) => text !== old[field]));
}

const isDirty = () => editor.open && Object.keys(changes()).length > 0;

/** Open the editor for a user, or for a new one (null). */
export function edit(user) {
  before = user;
  warned = false;
  byId("editor-title").textContent = user ? `Edit ${user.name}` : "Add a person";
  for (const field of FIELDS) byId(field).value = user?.[field] ?? "";
  compare(null);
  complain([]);
  editor.showModal();
  byId("name").focus();
}

/** Say at each field what is wrong with it, and below what else is. */
function complain(problems, message = "") {
  for (const field of FIELDS) {
    const problem = problems.find(({ loc }) => loc.at(-1) === field);
    byId(`${field}-problem`).textContent = problem ? inWords(problem) : "";
    byId(field).ariaInvalid = Boolean(problem);
  }
  byId("editor-problem").textContent = message;
  form.querySelector("[aria-invalid=true]")?.focus();
}

/** Store what was typed, or chosen. */
async function save() {
  if (saving) return;
  if (!byId("conflict").hidden) {
    for (const [field, text] of new FormData(form)) byId(field).value = text;
    compare(null);
  }
  const body = changes();
  if (before && !Object.keys(body).length) return editor.close();
  complain([]);
  byId("save").textContent = "Saving…";
  saving = new AbortController();
  const { signal } = saving;
  const path = before ? `users/${before.id}` : "users/";
  try {
    await freeAddress(body.email);
    const change = { method: "PATCH", body, version: before?.version, signal };
    show(await call(path, before ? change : { method: "POST", body: typed(), signal }));
  } catch (error) {
    if (!signal.aborted) await recover(error, path, signal);
  } finally {
    saving = null;
    byId("save").textContent = "Save";
  }
}

/** Delete now whoever has this address and is about to be deleted anyway. */
async function freeAddress(email = "") {
  const wanted = email.trim().toLowerCase();
  const same = [...deleting.values()].filter((one) => one.email.toLowerCase() === wanted);
  await Promise.all(same.map((one) => one.finish()));
}

/** Close the editor, and show a user in the list as it is stored. */
function show(user) {
  const old = find(user.id);
  if (old) old.replaceWith(row(user));
  else byId("people").prepend(row(user));
  count();
  editor.close();
  find(user.id).focus();
  tell(`${user.name} is saved.`);
}

/** Make the best of a refusal. */
async function recover(error, path, signal) {
  try {
    const { name, email } = typed();
    const same = (user) => user && user.name === name.trim() && user.email === email.trim();
    if (error.status === 412) {
      const theirs = await call(path, { signal });
      // Our own change, the answer to which got lost, makes a new version too.
      return same(theirs) ? show(theirs) : compare(theirs);
    }
    if (error.status === 409 && error.unsure && !before) {
      const { items } = await call(`users/?${new URLSearchParams({ email })}`, { signal });
      if (same(items[0])) return show(items[0]);
    }
    complain(error.fields, error.fields.length ? "" : error.message);
    if (error.status === 404) offerToAdd();
  } catch (again) {
    if (signal.aborted) return;
    complain([], again.message);
    if (again.status === 404) offerToAdd();
  }
}

/** Keep what was typed about somebody who is gone. */
function offerToAdd() {
  find(before.id)?.remove();
  count();
  before = null;
  complain([], "Somebody has deleted this person meanwhile. Save adds it again, as a new one.");
}

/** Show yours beside theirs, field by field, to choose from; null: show the fields to type in. */
function compare(theirs) {
  const conflict = byId("conflict");
  conflict.hidden = !theirs;
  byId("fields").hidden = Boolean(theirs);
  conflict.replaceChildren();
  if (!theirs) return;
  const mine = typed();
  const said = element("p", { tabIndex: -1 }, "Somebody else has changed this person meanwhile. Which do you want?");
  conflict.append(said);
  for (const field of FIELDS.filter((field) => mine[field] !== theirs[field])) {
    // What only they have changed is theirs, unless you say otherwise.
    const isMine = mine[field] !== before[field];
    const choice = (whose, text, checked) => {
      const radio = element("input", { type: "radio", name: field, value: text, checked });
      return element("label", { className: "choice" }, radio, whose, element("b", {}, ...breakable(text || "(nothing)")));
    };
    conflict.append(
      element(
        "fieldset",
        {},
        element("legend", {}, field === "name" ? "Name" : "Email"),
        choice("Yours", mine[field], isMine),
        choice("Theirs", theirs[field], !isMine),
      ),
    );
  }
  before = theirs;
  find(theirs.id)?.replaceWith(row(theirs));
  said.focus();
}

document.head.append(element("link", { rel: "stylesheet", href: "edit.css" }));
form.onsubmit = (event) => {
  event.preventDefault();
  save();
};
byId("cancel").onclick = () => editor.close();
// Escape is pressed by mistake more easily than Cancel.
editor.oncancel = (event) => {
  if (warned || !isDirty()) return;
  event.preventDefault();
  warned = true;
  byId("editor-problem").textContent = "This is not saved. Press Escape once more to throw it away.";
};
editor.onclose = () => saving?.abort();
addEventListener("beforeunload", (event) => isDirty() && event.preventDefault());
