// Roster's page, a client of the API in the README. This module talks to the API and draws the list. The others load after the
// first view: each button names a function that one of them exports.
export const byId = (id) => document.getElementById(id);
/** Return a new element with these properties (or attributes, by a dash) and children: nodes, or text, which never becomes HTML. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) name.includes("-") ? made.setAttribute(name, value) : (made[name] = value);
  made.append(...children.flat().filter(Boolean));
  return made;
}
/** Show what is wrong for now, in the page and in each dialog: any of them may be on top. */
const warn = (text) => document.querySelectorAll(".problem").forEach((place) => (place.textContent = text));
/** Announce to a screen reader what the screen shows. */
export const tell = (...words) => byId("news").replaceChildren(...words);
export const number = (n) => n.toLocaleString("en");
export const many = (n) => `${number(n)} ${n === 1 ? table.one : table.many}`;
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const MINUTE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
export const day = (time) => DAY.format(new Date(time));
export const minute = (time) => MINUTE.format(new Date(time));

// ---- Talking to the API
/** Return the error of a request that the API refuses: a sentence, and for 409 and 422 the fields that are wrong. */
function refusal(status, detail, unsure) {
  const fields = Array.isArray(detail) ? detail : [];
  return Object.assign(new Error(fields.length ? fields[0].msg : detail), { status, fields, unsure });
}
// In this tab only, and only until it is closed.
export let token = sessionStorage.getItem("token");
export const useToken = (text) => sessionStorage.setItem("token", (token = text));
// As the API says it: "X-Caller: bob;access=read". Without tokens, there is only one.
export const caller = { name: "", writes: true };
export const headers = ({ body, version }) => ({
  ...(token && { Authorization: `Bearer ${token}` }),
  ...(body && { "Content-Type": "application/json" }),
  ...(version && { "If-Match": `"${version}"` }), // change nothing but the version seen
});
/** Wait some seconds, less if the network comes back or the signal says stop. */
const wait = (seconds, signal) =>
  new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    addEventListener("online", resolve, { once: true });
    signal?.addEventListener("abort", resolve, { once: true });
  });
/** Send a request; return the answer's JSON, or what `read` makes of the answer. Throws a refusal. While the server is unreachable or
 * busy, it says so and retries. An attempt without an answer may have been done all the same: after one, a refusal says `unsure`. */
export const call = (path, options = {}) => busy(send(path, options));
async function send(path, { method, body, version, signal, read = (response) => response.json() }) {
  for (let pause = 1, unsure = false; ; pause = Math.min(pause * 2, 8)) {
    let reason = "No connection to Roster.";
    const used = token;
    try {
      const response = await fetch(path, { method, body: body && JSON.stringify(body), headers: headers({ body, version }), signal });
      if (response.status === 401) {
        if (token === used) await (await need("more")).askForToken();
        continue;
      }
      const [name, access] = response.headers.get("X-Caller")?.split(";access=") ?? ["", "write"];
      Object.assign(caller, { name, writes: access === "write" });
      document.body.classList.toggle("reads", !caller.writes);
      const answer = response.status === 204 ? null : await (response.ok ? read(response) : response.json().catch(() => null));
      reason = answer?.detail ?? `The server answers ${response.status}.`;
      // 502 and 504 come from a proxy that does not reach Roster.
      if (![429, 502, 503, 504].includes(response.status)) {
        warn("");
        if (response.ok) return answer;
        throw refusal(response.status, reason, unsure);
      }
    } catch (error) {
      if (error.status || signal?.aborted) throw error;
    }
    unsure = true;
    warn(`${reason.replace(/ Retry\.$/, "")} Retrying. What you typed is kept.`);
    await wait(pause, signal);
    signal?.throwIfAborted();
  }
}
let waiting = 0;
/** Show that something is under way; the style sheet does so only once it takes long. */
function busy(promise) {
  byId("busy").hidden = !(waiting += 1);
  return promise.finally(() => (byId("busy").hidden = !(waiting -= 1)));
}
const modules = {};
/** Return a module as soon as there is a connection. */
export const need = (name) => (modules[name] ??= busy(fetchModule(name, "")));
async function fetchModule(name, again) {
  try {
    return await import(`./${name}.js${again}`);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // it is there, but wrong
    warn("No connection to Roster. Retrying.");
    await wait(1);
    // Some browsers remember that a file could not be loaded: ask for it by another name.
    return fetchModule(name, `?${Date.now()}`).finally(() => warn(""));
  }
}
const report = async (...words) => (await need("more")).report(...words);
/** Send the deletions that wait for their undo. */
export const settle = async () => deleting.size && (await need("remove")).flush();
/** The table that the page shows. Users are drawn before the API's description of any table is here. */
export const table = { name: "users", path: "users/", one: "person", many: "people", title: "name", email: "email", sort: "name" };
export const deleting = new Map(); // items that wait for their undo, or for the answer to their DELETE
export const picked = new Map(); // items that are selected
export const drawn = new Map(); // by the id's text: {item, node}
const list = byId("people");
let next = null; // the cursor of the next page
let total = null;
let loading = null; // stops the request under way
let sought = ""; // what the list shows, as a query
export const find = (id) => drawn.get(String(id))?.node;
export const visible = () => [...list.querySelectorAll("[data-id]:not([hidden])")];
export const titleOf = (item) => String(item[table.title] ?? "").trim() || `#${item.id}`;
/** Return an item's title for a sentence, whose direction it leaves alone. */
export const named = (item) => element("bdi", {}, titleOf(item));
export const focusOn = (id) => (find(id)?.querySelector(".name") ?? byId("top")).focus();
/** Return a path with parameters, of which the empty ones are left out. */
export const listOf = (path, given) => `${path}?${new URLSearchParams(Object.entries(given).filter(([, value]) => value))}`;
export const searched = () => byId("text").value.trim();
const current = () => listOf(table.path, { q: searched(), sort: byId("sort").value });
/** Show the list from its beginning, or else the page after the last one shown. */
export async function load(fromStart) {
  if (loading && !fromStart) return;
  loading?.abort();
  const { signal } = (loading = new AbortController());
  if (fromStart) sought = current();
  let page = { items: [], next: null };
  let problem = "";
  try {
    page = await call(fromStart ? sought : `${sought}&${new URLSearchParams({ cursor: next, limit: 100 })}`, { signal });
  } catch (error) {
    if (signal.aborted) return; // a newer search is under way
    problem = error.message;
  }
  const pressed = document.activeElement === byId("more");
  loading = null;
  next = page.next;
  if (fromStart) {
    list.replaceChildren(byId("undo"));
    drawn.clear();
    total = null;
    if (next) countAll(signal).catch((error) => signal.aborted || report(error.message));
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
  total = (await call(listOf(table.path, { q: searched(), limit: 1, total: true }), { signal })).total;
  count();
}
/** Say how many are shown, after some were added or removed, or why there are none. */
export function count(added = 0, problem = "") {
  if (total !== null) total += added;
  const shown = visible().length;
  const of = total === null ? "" : ` of ${many(total - deleting.size)}`;
  byId("count").textContent = !shown ? "" : next ? `First ${number(shown)}${of}` : many(shown);
  byId("more").hidden = !next;
  byId("none").hidden = !problem && Boolean(shown || next);
  byId("nobody").textContent = problem || `No ${table.many} ${searched() ? "found" : "yet"}.`;
  byId("start").hidden = Boolean(problem || searched());
}
function row(item) {
  const id = String(item.id);
  const title = titleOf(item);
  const { [table.email]: mail, created_at: added } = item;
  const distinct = `${title}, ${mail ?? `#${id}`}`;
  const action = (word, name) => element("button", { className: `plain ${name}`, "data-do": name, ariaLabel: `${word} ${distinct}` }, word);
  const pick = { type: "checkbox", checked: picked.has(id), "data-do": "pick", ariaLabel: `Select ${distinct}` };
  const face = element("span", { className: "face", ariaHidden: "true" }, [...title][0].toUpperCase());
  face.style.setProperty("--hue", (item.id * 67) % 360);
  const breakable = mail?.split(/(?<=@)/).flatMap((part) => [part, element("wbr")]);
  const address = mail && element("a", { href: `mailto:${encodeURIComponent(mail).replace("%40", "@")}` }, breakable);
  const name = element("button", { className: "name", "data-do": "edit", dir: "auto", ariaLabel: distinct }, title);
  const who = element("div", { className: "who" }, name, element("p", {}, address, table.details?.(item)));
  const act = [mail && navigator.clipboard && action("Copy", "copy"), action("Edit", "edit"), action("Delete", "remove")];
  const parts = [element("label", {}, element("input", pick)), face, who, added && element("time", { dateTime: added, title: `Added ${minute(added)}` }, day(added))];
  const node = element("li", { hidden: deleting.has(id), "data-id": id }, parts, element("p", { className: "act" }, act));
  drawn.set(id, { item, node });
  return node;
}
export function redraw(item) {
  const old = find(item.id);
  if (old) old.replaceWith(row(item));
  else list.prepend(row(item));
  count(old ? 0 : 1);
}
export function drop(id) {
  find(id)?.remove();
  drawn.delete(String(id));
  count(-1);
}
// Of several entries, the last is the present state.
const end = new IntersectionObserver((entries) => entries.at(-1).isIntersecting && next && load(), { rootMargin: "1200px" });

// ---- The URL says what is sought, and which item is open (edit.js)
function readUrl() {
  const given = new URLSearchParams(location.search);
  byId("text").value = given.get("q") ?? "";
  byId("sort").value = given.get("sort") ?? table.sort;
  if (byId("sort").selectedIndex < 0) byId("sort").value = table.sort;
}
function writeUrl(replace) {
  const sort = byId("sort").value;
  const url = listOf(location.pathname, { q: searched(), sort: sort !== table.sort && sort, table: table.name !== "users" && table.name });
  history[replace ? "replaceState" : "pushState"](null, "", url.replace(/\?$/, ""));
}
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
  readUrl();
  if (current() !== sought) load(true);
  openLinked();
});
let typing = 0; // the timer of a search that is being typed
byId("text").oninput = () => {
  writeUrl(typing); // one step back for one search, not for each letter
  clearTimeout(typing);
  typing = setTimeout(load, 150, true);
};
byId("text").onblur = () => (typing = 0);
byId("sort").onchange = () => {
  writeUrl();
  load(true);
};
byId("search").onsubmit = (event) => event.preventDefault();
byId("more").onclick = () => load();
// A button names a function of a module.
const MODULES = { add: "edit", edit: "edit", remove: "remove", open: "import" };
addEventListener("click", async (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  const name = button.dataset.do;
  const { item } = drawn.get(button.closest("[data-id]")?.dataset.id) ?? {};
  await (await need(MODULES[name] ?? "more"))[name](item, event);
});
// What no dialog is there to say.
addEventListener("unhandledrejection", ({ reason }) => reason.status && report(reason.message));
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
