// Around the list: the tabs, the selected rows, export, and who is signed in.

import { byId, call, caller, drawn, element, many, need, picked, settle, table, tell, token, useToken } from "./roster.js";
import { tables } from "./tables.js";

document.head.append(element("link", { rel: "stylesheet", href: "more.css" }));

/** Draw what stands above the list, as soon as the caller is known. */
export function drawHeader() {
  const links = tables.map(({ name, many }) =>
    element("a", { href: name === "users" ? "." : `?table=${name}`, aria: name === table.name ? { current: "page" } : {} }, many),
  );
  byId("tables").replaceChildren(...links);
  byId("tables").hidden = links.length < 2;
  byId("import").hidden = !table.takes("bulk");
  byId("export").hidden = !table.takes("export");
  if (!token) return;
  const out = element("button", { className: "plain", data: { do: "signOut" } }, "Sign out");
  const who = caller.name ? [element("b", {}, caller.name), caller.writes ? " " : ", who may only read "] : [];
  byId("me").replaceChildren(...who, out);
  byId("me").hidden = false;
}

/** Show a text until it is closed. */
export function report(text) {
  const close = () => {
    line.remove();
    byId("undo").hidden = !byId("undo").childElementCount;
    byId("top").focus();
  };
  const line = element("div", {}, element("span", { dir: "auto" }, text), element("button", { onclick: close }, "Close"));
  byId("undo").append(line);
  byId("undo").hidden = false;
  tell(text);
}

// ---- Who is signed in

export function signOut() {
  sessionStorage.removeItem("token");
  location.reload();
}

let asking = null;

/** Ask for a token, once for all requests that want one. */
export function askForToken() {
  asking ??= new Promise((resolve) => {
    const input = element("input", { id: "token", type: "password", autocomplete: "off", required: true });
    input.setAttribute("aria-describedby", "token-problem");
    const wrong = element("p", { id: "token-problem", className: "wrong", role: "alert" }, token ? "Roster does not know this token." : "");
    const form = element(
      "form",
      {},
      element("h2", { id: "asker-title" }, "Sign in"),
      element("p", {}, "This Roster needs an access token. The page forgets it when you close this tab."),
      element("label", { htmlFor: "token" }, "Token"),
      ...[input, wrong, element("footer", {}, element("button", { className: "main" }, "Sign in"))],
    );
    const asker = element("dialog", { aria: { labelledby: "asker-title" } }, form);
    document.body.append(asker);
    asker.showModal();
    input.focus();
    asker.onclose = () => asking && asker.showModal(); // without a token there is nothing to see
    form.onsubmit = (event) => {
      event.preventDefault();
      useToken(input.value.replace(/[^!-~]/g, "")); // what a header can hold
      asking = null;
      asker.remove();
      byId("text").focus();
      resolve();
    };
  });
  return asking;
}

// ---- Files and the clipboard

/** Return a CSV file that spreadsheets open right: with a byte order mark, and no cell that they compute. */
export function csv(titles, rows) {
  const safe = (value) => `"${String(value ?? "").replace(/^(?='*[=+\-@＝＋－＠\t])/, "'").replaceAll('"', '""')}"`;
  return new Blob(["\ufeff", ...[titles, ...rows].map((cells) => `${cells.map(safe)}\r\n`)], { type: "text/csv" });
}

/** Have the browser save a file. */
export function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Save what is searched for. It is read here: a link cannot send a token, nor add a byte order mark. */
export async function save(_, { target }) {
  const { value: format } = target;
  byId("export").open = false;
  byId("export").firstElementChild.focus();
  await settle();
  const q = byId("text").value.trim();
  tell("The export is under way.");
  const file = await call(`${table.path}export?${new URLSearchParams({ format, ...(q && { q }) })}`, { read: (response) => response.blob() });
  const marked = format !== "csv" || (await file.slice(0, 3).text()) === "\ufeff";
  download(`${table.name}.${format}`, marked ? file : new Blob(["\ufeff", file], { type: file.type }));
}

async function copyText(text, what, { target }) {
  await navigator.clipboard.writeText(text);
  tell(`${what} copied.`);
  const { textContent } = target;
  target.textContent = "Copied";
  setTimeout(() => (target.textContent = textContent), 2000);
}

export const copy = (item, event) => copyText(item[table.email], item[table.email], event);

// ---- Several at once

let last = null; // the row that was selected last: with Shift, all up to it are

const choose = (node, checked) => {
  const { id } = node.dataset;
  node.querySelector("input").checked = checked;
  if (checked) picked.set(id, drawn.get(id).item);
  else picked.delete(id);
};
const visible = () => [...byId("people").querySelectorAll("[data-id]:not([hidden])")];

export function pick({ id }, { target, shiftKey }) {
  const rows = visible();
  const places = [rows.indexOf(drawn.get(String(id)).node), rows.indexOf(last)].filter((place) => place >= 0).sort((a, b) => a - b);
  const chosen = shiftKey && places.length === 2 ? rows.slice(places[0], places[1] + 1) : [target.closest("[data-id]")];
  for (const node of chosen) choose(node, target.checked);
  last = target.closest("[data-id]");
  showPicked();
}

export function showPicked() {
  const bar = byId("picked");
  const button = (text, name, more = "") => element("button", { className: `plain ${more}`, data: { do: name } }, text);
  const copies = table.email && navigator.clipboard ? [button("Copy addresses", "copyPicked")] : [];
  const all = visible().length > picked.size ? [button("Select all shown", "pickAll")] : [];
  bar.replaceChildren(`${many(picked.size)} selected`, ...copies, button("Export", "savePicked"), button("Delete", "removePicked", "writes"), ...all, button("Select none", "pickNone"));
  bar.hidden = !picked.size;
  byId("count").hidden = Boolean(picked.size);
  tell(picked.size ? bar.firstChild.data : "");
}

export function pickAll() {
  for (const node of visible()) choose(node, true);
  showPicked();
  byId("picked").querySelector("button").focus();
}

export function pickNone() {
  for (const id of picked.keys()) drawn.has(id) && choose(drawn.get(id).node, false);
  picked.clear();
  showPicked();
  byId("top").focus();
}

export const copyPicked = (_, event) =>
  copyText([...picked.values()].map((item) => item[table.email]).join("; "), `Addresses of ${many(picked.size)}`, event);

export async function savePicked() {
  await settle();
  const titles = table.read.map(({ name }) => name);
  download(`${table.name}.csv`, csv(titles, [...picked.values()].map((item) => titles.map((name) => item[name]))));
}

export const removePicked = async () => (await need("remove")).remove(...picked.values());
