// Roster's page: a plain client of the API in the README. Here: talking to the API, and the list.
// Editing, deleting and importing are modules of their own, loaded when they are first needed.
//
// Text from outside only ever becomes text (append, textContent), never HTML.

export const byId = (id) => document.getElementById(id);

/** Return a new element with these properties and children; a child that is a string is text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Say what is wrong for now: in the page and in each dialog, as one of them may be on top. */
export function warn(text) {
  for (const place of document.querySelectorAll(".problem")) place.textContent = text;
}

/** Tell a screen reader what everybody else sees. */
export const tell = (text) => (byId("news").textContent = text);

/** Return an address that breaks after its @, if it must. */
export const breakable = (email) => email.split(/(?<=@)/).flatMap((part) => [part, element("wbr")]);

export const people = (n) => `${n.toLocaleString("en")} ${n === 1 ? "person" : "people"}`;

// ---- Talking to the API

/** A request that the API refuses: a sentence, and for 409 and 422 the fields that are wrong. */
export class Refusal extends Error {
  constructor(status, detail, unsure) {
    const fields = Array.isArray(detail) ? detail : [];
    super(fields.length ? "Some of this cannot be stored." : detail);
    Object.assign(this, { status, fields, unsure });
  }
}

// In this tab only, and only until it is closed.
let token = sessionStorage.getItem("token");

export function headers({ body, version }) {
  return {
    ...(token && { Authorization: `Bearer ${token}` }),
    ...(body && { "Content-Type": "application/json" }),
    // "Change nothing that I have not seen": the ETag is the version in quotes.
    ...(version && { "If-Match": `"${version}"` }),
  };
}

/** Wait some seconds, less if the network comes back; throw as soon as the signal says stop. */
function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    addEventListener("online", resolve, { once: true });
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/**
 * Send a request; return the answer's JSON, or what `read` makes of it. Throws Refusal.
 *
 * While there is no connection, or the server is away, it says so and tries again. An attempt that
 * got no answer may have been done all the same: after one, `read` and Refusal are told `unsure`.
 */
export async function call(path, { method, body, version, signal, read = (r) => r.json() } = {}) {
  const data = body && JSON.stringify(body);
  for (let pause = 1, unsure = false; ; pause = Math.min(pause * 2, 8)) {
    let reason = "No connection to Roster.";
    const used = token;
    try {
      const response = await fetch(path, { method, body: data, headers: headers({ body, version }), signal });
      if (response.status === 401) {
        if (token === used) await askForToken();
        continue;
      }
      if (response.ok) {
        const answer = response.status === 204 ? null : await read(response, unsure);
        warn("");
        return answer;
      }
      const said = await response.json().catch(() => ({}));
      reason = said.detail ?? `The server answers ${response.status}.`;
      // 502 and 504 are a proxy's that does not reach Roster.
      if (![502, 503, 504].includes(response.status)) {
        warn("");
        throw new Refusal(response.status, reason, unsure);
      }
    } catch (error) {
      if (error instanceof Refusal || signal?.aborted) throw error;
    }
    unsure = true;
    warn(`${reason.replace(" Try again.", "")} Trying again; nothing that you typed is lost.`);
    await wait(pause, signal);
  }
}

let asking = null;

/** Ask for a token, once for all requests that want one. */
function askForToken() {
  byId("token-problem").textContent = token ? "Roster does not know this token." : "";
  asking ??= new Promise((resolve) => {
    const asker = byId("asker");
    asker.showModal();
    asker.onclose = () => asking && asker.showModal(); // there is nothing to see without
    asker.onsubmit = (event) => {
      event.preventDefault();
      token = byId("token").value.replace(/[^!-~]/g, ""); // what a header can hold
      sessionStorage.setItem("token", token);
      byId("token").value = "";
      asking = null;
      asker.close();
      resolve();
    };
  });
  return asking;
}

// ---- The list

const list = byId("people");
export const deleting = new Map(); // by id; see remove.js
let next = null; // the cursor of the next page
let loading = null; // stops the request under way

/** Return what is searched for, as the API's parameters. */
function sought() {
  const text = byId("text").value.trimStart();
  return text.includes("@") ? { email: text.trim() } : { name: text.slice(0, 100) };
}

const query = (parameters) => `users/?${new URLSearchParams({ ...sought(), ...parameters })}`;

/** Show the list from its beginning, or else the page after the last one shown. */
export async function load(fromStart) {
  if (loading && !fromStart) return;
  loading?.abort();
  const { signal } = (loading = new AbortController());
  let page = { items: [], next: null };
  let problem = "";
  try {
    page = await call(query(fromStart ? { sort: byId("sort").value } : { cursor: next }), { signal });
  } catch (error) {
    if (signal.aborted) return; // a newer search is under way
    problem = error.message;
    if (error.status === 422) problem = sought().email ? "This is not a whole address yet." : "Nobody has such a name.";
  }
  loading = null;
  next = page.next;
  if (fromStart) list.replaceChildren();
  // Who was just added is at the top already.
  list.append(...page.items.filter(({ id }) => !find(id)).map(row));
  count(problem);
  if (fromStart) tell(problem || byId("shown").textContent || byId("nobody").textContent);
  // An observer tells of changes only: begin anew, in case the end is in sight still.
  end.disconnect();
  end.observe(byId("more"));
}

/** Say how many are shown, or why nobody is. */
export function count(problem = "") {
  const shown = list.querySelectorAll("li:not([hidden])").length;
  const nobody = Object.values(sought()).join("") ? "Nobody found." : "Nobody is here yet. Add a person, or import a list.";
  byId("shown").textContent = shown ? people(shown) + (next ? " shown" : "") : "";
  byId("more").hidden = byId("total").hidden = !next;
  byId("nobody").textContent = problem || (shown || next ? "" : nobody);
}

export const find = (id) => list.querySelector(`[data-id="${id}"]`);

/** Return the row of a user. */
export function row(user) {
  const face = element("span", { className: "face", ariaHidden: "true" }, [...user.name][0].toUpperCase());
  face.style.setProperty("--hue", (user.id * 67) % 360);
  const day = new Date(user.created_at).toLocaleDateString("en", { dateStyle: "medium" });
  const action = (word, onclick) =>
    element("button", { className: "plain", ariaLabel: `${word} ${user.name}`, onclick }, word);
  const made = element(
    "li",
    { tabIndex: -1, hidden: deleting.has(user.id) },
    face,
    element("p", { className: "who" }, element("b", {}, user.name), element("span", {}, ...breakable(user.email))),
    element("time", { dateTime: user.created_at, title: `Added ${day}` }, day),
    element("p", { className: "act" }, action("Edit", () => edit(user)), action("Delete", () => remove(user))),
  );
  made.dataset.id = user.id;
  return made;
}

const end = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && next && load(), { rootMargin: "600px" });

let typing;
byId("text").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(load, 150, true);
};
byId("search").onsubmit = (event) => {
  event.preventDefault();
  load(true);
};
byId("sort").onchange = () => load(true);
byId("more").onclick = () => load();
byId("total").onclick = async () => {
  const { total } = await call(query({ limit: 1, total: true }));
  const going = deleting.size ? `, ${deleting.size} about to be deleted` : "";
  tell((byId("shown").textContent = `${people(total)} in all${going}`));
  byId("total").hidden = true;
  byId("count").focus();
};

// ---- What the buttons do

/** Load a module, as soon as there is a connection. */
async function fetchModule(file) {
  // Some browsers remember that a file could not be loaded: ask for it by another name.
  for (let again = ""; ; again = `?${Date.now()}`) {
    try {
      const found = await import(file + again);
      if (again) warn("");
      return found;
    } catch {
      warn("No connection to Roster. Trying again.");
      await wait(1);
    }
  }
}

const modules = {};
const need = (file) => (modules[file] ??= fetchModule(file));
const edit = async (user) => (await need("./edit.js")).edit(user);
const remove = async (user) => (await need("./remove.js")).remove(user);
/** Delete now who is about to be deleted: what comes next is about everybody. */
const settle = () => Promise.all([...deleting.values()].map((one) => one.finish()));

byId("add").onclick = () => edit(null);
byId("import").onclick = async () => {
  const { open } = await need("./import.js");
  await settle();
  open();
};

// What no dialog is there to say.
addEventListener("unhandledrejection", ({ reason }) => reason instanceof Refusal && warn(reason.message));

/** Have the browser save a file. */
export function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const menu = byId("export");
menu.onclick = async (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  menu.open = false;
  await settle();
  // No link can send a token. Without one, the browser saves the file while it comes.
  if (token) download(link.download, await call(link.href, { read: (response) => response.blob() }));
  else location.assign(link.href);
};
// A handler that returns false would cancel every key: hence the braces.
menu.onkeydown = ({ key }) => {
  if (key === "Escape") menu.open = false;
};
addEventListener("click", ({ target }) => {
  if (!menu.contains(target)) menu.open = false;
});

load(true);
