// Roster's page, a client of the API in the README. This module talks to the API and draws the list.
// The others load after the first view: each button names a function that one of them exports.
//
// Text from outside only ever becomes text (append, textContent), never HTML.

export const byId = (id) => document.getElementById(id);

/** Return a new element with these properties and children; a child that is a string is text. */
export function element(tag, { data, aria, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, data);
  for (const name in aria) made.setAttribute(`aria-${name}`, aria[name]);
  made.append(...children);
  return made;
}

/** Show what is wrong for now, in the page and in each dialog: any of them may be on top. */
export function warn(text) {
  for (const place of document.querySelectorAll(".problem")) place.textContent = text;
}

/** Announce to a screen reader what the screen shows. */
export const tell = (text) => (byId("news").textContent = text);

/** Return an address as nodes that may break after its @. */
export const breakable = (email) => email.split(/(?<=@)/).flatMap((part) => [part, element("wbr")]);

export const number = (n) => n.toLocaleString("en");
export const many = (n) => `${number(n)} ${n === 1 ? table.one : table.many}`;
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const MINUTE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
export const day = (time) => DAY.format(new Date(time));
export const minute = (time) => MINUTE.format(new Date(time));

/** Show that something is under way, once it takes longer than it should. */
let slow = 0;
async function busy(promise) {
  let counted = false;
  const count = (by) => (byId("busy").hidden = !(slow += by));
  const timer = setTimeout(() => count((counted = 1)), 400);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    if (counted) count(-1);
  }
}

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
export let token = sessionStorage.getItem("token");
export const useToken = (text) => sessionStorage.setItem("token", (token = text));
/** The caller as the API names it ("bob;access=read"); a Roster without tokens has only one. */
export const caller = { name: "", writes: true };

export function headers({ body, version }) {
  return {
    ...(token && { Authorization: `Bearer ${token}` }),
    ...(body && { "Content-Type": "application/json" }),
    // Change nothing but the version seen: its number, in quotes, is the ETag.
    ...(version && { "If-Match": `"${version}"` }),
  };
}

/** Wait some seconds, less if the network comes back; throw as soon as the signal says stop. */
export function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    addEventListener("online", resolve, { once: true });
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/**
 * Send a request; return the answer's JSON, or what `read` makes of the answer. Throws Refusal.
 *
 * While the server is unreachable or busy, it says so and retries. An attempt without an answer may
 * have been done all the same: after one, Refusal says `unsure`.
 */
export const call = (path, options = {}) => busy(send(path, options));

async function send(path, { method, body, version, signal, read = (response) => response.json() }) {
  const data = body && JSON.stringify(body);
  for (let pause = 1, unsure = false; ; pause = Math.min(pause * 2, 8)) {
    let reason = "No connection to Roster.";
    const used = token;
    try {
      const response = await fetch(path, { method, body: data, headers: headers({ body, version }), signal });
      if (response.status === 401) {
        if (token === used) await (await need("more")).askForToken();
        continue;
      }
      const said = response.headers.get("X-Caller");
      if (said) Object.assign(caller, { name: said.split(";")[0], writes: !said.endsWith("access=read") });
      document.body.classList.toggle("reads", !caller.writes);
      if (response.ok) {
        const answer = response.status === 204 ? null : await read(response);
        warn("");
        return answer;
      }
      const { detail } = await response.json().catch(() => ({}));
      reason = detail ?? `The server answers ${response.status}.`;
      // 502 and 504 come from a proxy that does not reach Roster.
      if (![429, 502, 503, 504].includes(response.status)) {
        warn("");
        throw new Refusal(response.status, reason, unsure);
      }
    } catch (error) {
      if (error instanceof Refusal || signal?.aborted) throw error;
    }
    unsure = true;
    warn(`${reason.replace(/ (Try again|Retry)\.$/, "")} Retrying. What you typed is kept.`);
    await wait(pause, signal);
  }
}

// ---- The modules that load after the first view

const modules = {};

/** Return a module as soon as there is a connection. */
export const need = (name) => (modules[name] ??= busy(fetchModule(name)));

async function fetchModule(name) {
  // Some browsers remember that a file could not be loaded: ask for it by another name.
  for (let again = ""; ; again = `?${Date.now()}`) {
    try {
      const found = await import(`./${name}.js${again}`);
      if (again) warn("");
      return found;
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // it is there, but wrong
      warn("No connection to Roster. Retrying.");
      await wait(1);
    }
  }
}

/** Send the deletions that wait for their undo: the next step is about what is stored. */
export const settle = async () => deleting.size && (await need("remove")).flush();

// ---- The list

/** The table that the page shows: users are drawn before the API's description of any is here. */
export const table = { name: "users", path: "users/", one: "person", many: "people", title: "name", email: "email", sort: "name" };
export const deleting = new Map(); // rows that wait for their undo, or for the answer to their DELETE
export const picked = new Map(); // rows that are selected
export const drawn = new Map(); // rows by the id's text: {item, node}
const list = byId("people");
let next = null; // the cursor of the next page
let total = null;
let loading = null; // stops the request under way
let sought = ""; // what the list shows, as a query

export const find = (id) => drawn.get(String(id))?.node;
export const titleOf = (item) => String(item[table.title] ?? "").trim() || `#${item.id}`;
/** Return the words by which a row differs from all others. */
const distinct = (item) => `${titleOf(item)}, ${item[table.email] ?? `#${item.id}`}`;

const query = (parameters) => {
  const q = byId("text").value.trim();
  return new URLSearchParams({ ...(q && { q }), ...parameters });
};

/** Show the list from its beginning, or else the page after the last one shown. */
export async function load(fromStart) {
  if (loading && !fromStart) return;
  loading?.abort();
  const { signal } = (loading = new AbortController());
  if (fromStart) sought = `${query({ sort: byId("sort").value })}`;
  const pressed = document.activeElement === byId("more");
  let page = { items: [], next: null };
  let problem = "";
  try {
    const more = fromStart ? "" : `&${new URLSearchParams({ cursor: next, limit: 100 })}`;
    page = await call(`${table.path}?${sought}${more}`, { signal });
  } catch (error) {
    if (signal.aborted) return; // a newer search is under way
    problem = error.message;
  }
  loading = null;
  next = page.next;
  if (fromStart) {
    list.replaceChildren(byId("undo"));
    drawn.clear();
    total = null;
    if (next) countAll(signal);
  }
  // A row that was just added is at the top already.
  const rows = page.items.filter(({ id }) => !find(id)).map(row);
  list.append(...rows);
  if (pressed) rows[0]?.querySelector(".name").focus();
  count(0, problem);
  if (fromStart) tell(problem || byId("count").textContent || byId("nobody").textContent);
  // An observer tells of changes only: begin anew, in case the end is in sight still.
  end.disconnect();
  end.observe(byId("more"));
}

async function countAll(signal) {
  const page = await call(`${table.path}?${query({ limit: 1, total: true })}`, { signal }).catch((error) => {
    if (!signal.aborted) throw error;
  });
  if (!page || signal.aborted || loading) return;
  total = page.total;
  count();
}

/** Say how many are shown, after some were added or removed, or why there are none. */
export function count(added = 0, problem = "") {
  if (total !== null) total += added;
  const shown = list.querySelectorAll("[data-id]:not([hidden])").length;
  const of = total === null ? "" : ` of ${many(total - deleting.size)}`;
  const searched = Boolean(byId("text").value.trim());
  byId("count").textContent = !shown ? "" : next ? `First ${number(shown)}${of}` : many(shown);
  byId("more").hidden = !next;
  const nothing = !shown && !next;
  byId("none").hidden = !problem && !nothing;
  byId("nobody").textContent = problem || `No ${table.many} ${searched ? "found" : "yet"}.`;
  byId("start").hidden = Boolean(problem) || searched;
  byId("clear").hidden = !searched;
}

/** Return the row of an item. */
export function row(item) {
  const id = String(item.id);
  const title = titleOf(item);
  const action = (word, name) =>
    element("button", { className: `plain ${name}`, data: { do: name }, ariaLabel: `${word} ${distinct(item)}` }, word);
  const pick = { type: "checkbox", checked: picked.has(id), data: { do: "pick" }, ariaLabel: `Select ${distinct(item)}` };
  const face = element("span", { className: "face", ariaHidden: "true" }, [...title][0].toUpperCase());
  face.style.setProperty("--hue", (item.id * 67) % 360);
  const mail = item[table.email];
  const link = mail && element("a", { href: `mailto:${encodeURIComponent(mail).replace("%40", "@")}` }, ...breakable(mail));
  const node = element(
    "li",
    { hidden: deleting.has(id), data: { id } },
    element("label", {}, element("input", pick)),
    face,
    element(
      "div",
      { className: "who" },
      element("button", { className: "name", data: { do: "edit" }, dir: "auto", ariaLabel: distinct(item) }, title),
      element("p", {}, ...(mail ? [link] : []), ...(table.details?.(item) ?? [])),
    ),
    ...(item.created_at ? [element("time", { dateTime: item.created_at, title: `Added ${minute(item.created_at)}` }, day(item.created_at))] : []),
    element("p", { className: "act" }, ...(mail && navigator.clipboard ? [action("Copy", "copy")] : []), action("Edit", "edit"), action("Delete", "remove")),
  );
  drawn.set(id, { item, node });
  return node;
}

/** Draw an item as it is stored, in its row or at the top. */
export function redraw(item) {
  const old = find(item.id);
  if (old) old.replaceWith(row(item));
  else list.prepend(row(item));
  count(old ? 0 : 1);
}

/** Take an item out of the list. */
export function drop(id) {
  find(id)?.remove();
  drawn.delete(String(id));
  picked.delete(String(id));
  count(-1);
}

/** Put the focus on a row, or where the list begins. */
export const focusOn = (id) => (find(id)?.querySelector(".name") ?? byId("top")).focus();

const end = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && next && load(), { rootMargin: "1200px" });

// ---- The URL says what is sought, and which item is open (edit.js)

let typing = null; // the timer of a search that is being typed

/** Fill in the search from the URL; return whether it is another one than the list shows. */
function readUrl() {
  const given = new URLSearchParams(location.search);
  byId("text").value = given.get("q") ?? "";
  byId("sort").value = given.get("sort") ?? table.sort;
  if (byId("sort").selectedIndex < 0) byId("sort").value = table.sort;
  return `${query({ sort: byId("sort").value })}` !== sought;
}

function writeUrl(replace) {
  const sort = byId("sort").value;
  const given = query({ ...(sort !== table.sort && { sort }), ...(table.name !== "users" && { table: table.name }) });
  history[replace ? "replaceState" : "pushState"](null, "", `${location.pathname}${String(given) && `?${given}`}`);
}

/** Open the item that the URL names. */
async function openLinked() {
  const id = location.hash.slice(1);
  if (!/^[1-9][0-9]*$/.test(id)) return;
  try {
    const item = drawn.get(id)?.item ?? (await call(`${table.path}${id}`));
    if (location.hash === `#${id}`) await (await need("edit")).edit(item);
  } catch (error) {
    history.replaceState(null, "", location.pathname + location.search);
    report(error.status === 404 ? `The ${table.one} of this link does not exist. It may have been deleted.` : error.message);
  }
}

addEventListener("popstate", () => {
  if (readUrl()) load(true);
  openLinked();
});

byId("text").oninput = () => {
  writeUrl(typing !== null); // one step back for one search, not for each letter
  clearTimeout(typing);
  typing = setTimeout(load, 150, true);
};
byId("text").onblur = () => (typing = null);
byId("sort").onchange = () => {
  writeUrl();
  load(true);
};
byId("search").onsubmit = (event) => {
  event.preventDefault();
  load(true);
};

// ---- Buttons

const HERE = {
  more: () => load(),
  clear() {
    byId("text").value = "";
    byId("text").focus();
    writeUrl();
    load(true);
  },
};
const MODULES = { add: "edit", edit: "edit", remove: "remove", open: "import" };

addEventListener("click", async (event) => {
  const button = event.target.closest("[data-do]");
  if (!byId("export").contains(event.target) || button) byId("export").open = false;
  if (!button) return;
  const { do: name } = button.dataset;
  const { item } = drawn.get(button.closest("[data-id]")?.dataset.id) ?? {};
  const run = HERE[name] ?? (await need(MODULES[name] ?? "more"))[name];
  await run(item, event);
});
byId("export").onkeydown = ({ key }) => {
  if (key !== "Escape" || !byId("export").open) return;
  byId("export").open = false;
  byId("export").firstElementChild.focus();
};

const report = async (text) => (await need("more")).report(text);
// What no dialog is there to say.
addEventListener("unhandledrejection", ({ reason }) => reason instanceof Refusal && report(reason.message));

async function start() {
  const other = new URLSearchParams(location.search).get("table");
  if (other && other !== "users") await (await need("tables")).become(other);
  readUrl();
  await load(true);
  openLinked();
  (await need("more")).drawHeader();
  for (const name of ["edit", "remove"]) need(name); // likely to be wanted, maybe without a connection
}
start();
