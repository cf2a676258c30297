// Deleting with undo: the DELETE is sent when the time to undo is over, or when the page is left. So undo loses nothing, the id least
// of all; and after a crash a row is there that can be deleted again, not gone that was wanted.

import { report, showPicked } from "./more.js";
import { byId, call, count, deleting, drop, element, find, focusOn, headers, many, named, picked, table, tell, visible } from "./roster.js";

const UNDO_SECONDS = 8;
const notice = byId("undo");
let open = []; // those that can still be undone
let timer;
let sending = Promise.resolve();
const said = (items) => (items.length === 1 ? [named(items[0]), " is"] : [many(items.length)]);
export function remove(...given) {
  const items = given.filter((item) => item?.id && !deleting.has(String(item.id)));
  if (!items.length) return;
  const rows = visible();
  const place = rows.indexOf(find(items.at(-1).id));
  for (const item of items) {
    deleting.set(String(item.id), item);
    picked.delete(String(item.id));
    if (find(item.id)) find(item.id).hidden = true;
  }
  open.push(...items);
  // The undo is beside the row that gets the focus, to be near for the Tab key, too.
  const next = [...rows.slice(place + 1), ...rows.slice(0, place).reverse()].find(({ hidden }) => !hidden);
  next?.after(notice);
  draw();
  showPicked();
  (next?.querySelector(".remove") ?? notice.querySelector("button")).focus({ preventScroll: true });
  start();
  tell(...said(open), " deleted. Control Z undoes it.");
}
function draw() {
  const focused = notice.contains(document.activeElement);
  notice.querySelector(".undo")?.remove();
  const undo = element("button", { onclick: () => keep(open) }, open.length === 1 ? "Undo" : "Undo all");
  if (open.length) notice.append(element("div", { className: "undo" }, element("span", {}, said(open), " deleted."), undo));
  notice.hidden = !notice.childElementCount;
  if (focused) (notice.querySelector("button") ?? byId("top")).focus();
  count();
}
function start() {
  clearTimeout(timer);
  if (open.length) timer = setTimeout(flush, UNDO_SECONDS * 1000);
}
function keep(items) {
  open = open.filter((item) => !items.includes(item));
  for (const { id } of items) {
    deleting.delete(String(id));
    if (find(id)) find(id).hidden = false; // none if the list is another one by now
  }
  draw();
  start();
  focusOn(items.at(-1).id);
  tell(...said(items), " kept.");
}
/** Delete now those that wait; return when they and those on their way are done. */
export function flush() {
  const items = open;
  open = [];
  draw();
  return (sending = Promise.all([sending, ...items.map(send)]));
}
async function send(item) {
  try {
    await call(`${table.path}${item.id}`, { method: "DELETE", version: item.version });
  } catch (error) {
    if (error.status !== 404) {
      keep([item]);
      return report(named(item), ` is not deleted. ${error.status === 412 ? `This ${table.one} has changed since you saw it.` : error.message}`);
    }
  }
  deleting.delete(String(item.id));
  if (find(item.id)) drop(item.id);
}
// On the way to the button, there is all the time it takes.
for (const event of ["pointerenter", "focusin"]) notice.addEventListener(event, () => clearTimeout(timer));
for (const event of ["pointerleave", "focusout"]) notice.addEventListener(event, start);
addEventListener("pagehide", () => {
  for (const { id, version } of open) fetch(`${table.path}${id}`, { method: "DELETE", headers: headers({ version }), keepalive: true });
  open = [];
});
// Chromium lets a page that is left send some 250 requests.
addEventListener("beforeunload", (event) => open.length > 100 && event.preventDefault());
addEventListener("keydown", (event) => {
  // In a field with text, it undoes the typing.
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && open.length && !/text|search/.test(event.target.type)) keep([open.at(-1)]);
});
