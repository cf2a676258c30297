// Around the list: the tabs, who is signed in, files, and the selected rows.

import { byId, call, caller, drawn, element, listOf, many, need, picked, searched, settle, table, tell, token, useToken, visible } from "./roster.js";
import { tables } from "./tables.js";

document.head.append(element("link", { rel: "stylesheet", href: "more.css" }));
/** Draw what stands above the list, as soon as the caller is known. */
export function drawHeader() {
  const link = ({ name, many }) =>
    element("a", { href: name === "users" ? "." : `?table=${name}`, ...(name === table.name && { "aria-current": "page" }) }, many);
  byId("tables").replaceChildren(...tables.map(link));
  byId("tables").hidden = tables.length < 2;
  byId("import").hidden = !table.takes("bulk");
  byId("export").hidden = !table.takes("export");
  const out = element("button", { className: "plain", "data-do": "signOut" }, "Sign out");
  byId("me").replaceChildren(element("b", { dir: "auto" }, caller.name), caller.writes ? " " : " (read only) ", out);
  byId("me").hidden = !token;
}
export function report(...words) {
  const close = element("button", { "data-do": "closeReport" }, "Close");
  byId("undo").append(element("div", {}, element("span", {}, words), close));
  byId("undo").hidden = false;
  tell(...words.map((part) => part.textContent ?? part));
}
export function closeReport(_, { target }) {
  target.parentElement.remove();
  byId("undo").hidden = !byId("undo").childElementCount;
  byId("top").focus();
}
export function signOut() {
  sessionStorage.removeItem("token");
  location.reload();
}
let asking = null;
/** Ask for a token, once for all requests that want one. */
export function askForToken() {
  const asker = byId("asker");
  byId("token-problem").textContent = token ? "Roster does not know this token." : "";
  asking ??= new Promise((resolve) => {
    asker.showModal();
    asker.onclose = () => asking && asker.showModal(); // without a token there is nothing to see
    asker.onsubmit = (event) => {
      event.preventDefault();
      useToken(byId("token").value.replace(/[^!-~]/g, "")); // what a header can hold
      byId("token").value = "";
      asking = null;
      asker.close();
      byId("text").focus();
      resolve();
    };
  });
  return asking;
}
/** Return a CSV file that spreadsheets open right: with a byte order mark, and no cell that they compute (export.py has the rule). */
export function csv(titles, rows) {
  const safe = (value) => `"${String(value ?? "").replace(/(?:^|(?<=[;\t\r\n]))(?=['"]*[=+\-@＝＋－＠])/g, "'").replaceAll('"', '""')}"`;
  return new Blob(["\ufeff", ...[titles, ...rows].map((cells) => `${cells.map(safe)}\r\n`)], { type: "text/csv" });
}
export function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
/** Save what is searched for. It is read here: a link cannot send a token, nor add a byte order mark. */
export async function save(_, { target: { value: format } }) {
  await settle();
  tell("The export is under way.");
  const file = await call(listOf(`${table.path}export`, { format, q: searched() }), { read: (response) => response.blob() });
  const mark = format === "csv" && (await file.slice(0, 3).text()) ? ["\ufeff"] : []; // text() leaves a mark out
  download(`${table.name}.${format}`, new Blob([...mark, file], { type: file.type }));
}
async function copyText(text, what, { target }) {
  await navigator.clipboard.writeText(text);
  tell(`${what} copied.`);
  const { textContent } = target;
  target.textContent = "Copied";
  setTimeout(() => (target.textContent = textContent), 2000);
}
export const copy = (item, event) => copyText(item[table.email], item[table.email], event);
let last = null; // the row that was selected last: with Shift, all up to it are
export function pick(_, { target, shiftKey }) {
  const rows = visible();
  const node = target.closest("[data-id]");
  const [from, to] = [rows.indexOf(last), rows.indexOf(node)].sort((a, b) => a - b);
  choose(shiftKey && from >= 0 ? rows.slice(from, to + 1) : [node], target.checked);
  last = node;
}
function choose(nodes, checked) {
  for (const node of nodes) {
    node.querySelector("input").checked = checked;
    if (checked) picked.set(node.dataset.id, drawn.get(node.dataset.id).item);
    else picked.delete(node.dataset.id);
  }
  showPicked();
}
export function showPicked() {
  const said = picked.size ? `${many(picked.size)} selected` : "";
  byId("picked").firstElementChild.textContent = said;
  byId("picked").querySelector("[data-do=copyPicked]").hidden = !table.email || !navigator.clipboard;
  byId("picked").hidden = !said;
  byId("count").hidden = Boolean(said);
  if (said) tell(said);
}
export function pickNone() {
  picked.clear();
  choose(visible(), false);
  byId("top").focus();
}
const all = () => [...picked.values()];
export const removePicked = async () => (await need("remove")).remove(...all());
export const copyPicked = (_, event) => copyText(all().map((item) => item[table.email]).join("; "), `Addresses of ${many(picked.size)}`, event);
export async function savePicked() {
  await settle();
  const titles = table.read.map(({ name }) => name);
  download(`${table.name}.csv`, csv(titles, all().map((item) => titles.map((name) => item[name]))));
}
