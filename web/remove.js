// Deleting with undo: the DELETE is sent when the time to undo is over, or when the page is left.
// So undo loses nothing, the id least of all; and after a crash, a row is there that can be deleted
// again, not gone one that was wanted.

import { report, showPicked } from "./more.js";
import { byId, call, count, deleting, drop, element, find, focusOn, headers, many, picked, table, tell, titleOf } from "./roster.js";

const UNDO_SECONDS = 8;
const notice = byId("undo");
let open = []; // those that can still be undone
let timer;

/** Hide rows now, and delete them later. */
export function remove(...given) {
  const items = given.filter((item) => item?.id && !deleting.has(String(item.id)));
  if (!items.length) return;
  const rows = [...byId("people").querySelectorAll("[data-id]:not([hidden])")];
  const place = rows.indexOf(find(items.at(-1).id));
  for (const item of items) {
    deleting.set(String(item.id), item);
    picked.delete(String(item.id));
    open.push(item);
    if (find(item.id)) find(item.id).hidden = true;
  }
  const next = rows.slice(place + 1).find(({ hidden }) => !hidden) ?? rows.slice(0, place).findLast(({ hidden }) => !hidden);
  // Beside the row that gets the focus, to be near for the Tab key, too.
  if (next) next.after(notice);
  draw();
  count();
  showPicked();
  (next?.querySelector(".remove") ?? notice.querySelector("button")).focus({ preventScroll: true });
  start();
  tell(`${said()} Control Z undoes it.`);
}

const said = () => (open.length === 1 ? `${titleOf(open[0])} is deleted.` : `${many(open.length)} deleted.`);

function draw() {
  const hadFocus = notice.contains(document.activeElement);
  notice.querySelector(".undo")?.remove();
  if (open.length) {
    const undo = element("button", { onclick: () => keep(open) }, open.length === 1 ? "Undo" : "Undo all");
    notice.append(element("div", { className: "undo" }, element("span", { dir: "auto" }, said()), undo));
  }
  notice.hidden = !notice.childElementCount;
  if (hadFocus && !notice.contains(document.activeElement)) (notice.querySelector("button") ?? byId("top")).focus();
}

function start() {
  clearTimeout(timer);
  if (open.length) timer = setTimeout(flush, UNDO_SECONDS * 1000);
}

/** Show items again, which were not deleted after all. */
function keep(items) {
  const kept = items.map(({ id }) => String(id));
  open = open.filter(({ id }) => !kept.includes(String(id)));
  for (const id of kept) {
    deleting.delete(id);
    if (find(id)) find(id).hidden = false; // none if the list is another one by now
  }
  draw();
  count();
  start();
  focusOn(kept.at(-1));
  tell(`${kept.length === 1 ? titleOf(items[0]) : many(kept.length)} kept.`);
}

let sending = Promise.resolve();

/** Delete now those that wait; return when they and those on their way are done. */
export function flush() {
  const items = open;
  open = [];
  clearTimeout(timer);
  draw();
  const queue = items.values();
  const work = async () => {
    for (const item of queue) await send(item);
  };
  return (sending = Promise.all([sending, work(), work(), work(), work()]));
}

async function send(item) {
  try {
    await call(`${table.path}${item.id}`, { method: "DELETE", version: item.version });
  } catch (error) {
    if (error.status !== 404) {
      const changed = `This ${table.one} has changed since you saw it.`;
      keep([item]);
      return report(`${titleOf(item)} is not deleted. ${error.status === 412 ? changed : error.message}`);
    }
  }
  deleting.delete(String(item.id));
  if (find(item.id)) drop(item.id);
}

// On the way to the button, there is all the time it takes.
for (const event of ["pointerenter", "focusin"]) notice.addEventListener(event, () => clearTimeout(timer));
for (const event of ["pointerleave", "focusout"]) notice.addEventListener(event, start);
// No page is there any more to hear the answers.
addEventListener("pagehide", () => {
  for (const { id, version } of open) {
    const request = { method: "DELETE", version };
    fetch(`${table.path}${id}`, { ...request, headers: headers(request), keepalive: true });
  }
  open = [];
});
// Browsers let a page that is left send a few requests, not many.
addEventListener("beforeunload", (event) => open.length > 15 && event.preventDefault());
addEventListener("keydown", (event) => {
  const undoKey = event.key === "z" && (event.ctrlKey || event.metaKey);
  // In a field with text, it undoes the typing.
  if (undoKey && open.length && !/text|search/.test(event.target.type)) keep([open.at(-1)]);
});
