// Deleting with undo: the DELETE is sent when the time to undo is over, or when the page is left.
// So undo loses nothing, the id least of all; and should the browser crash meanwhile, somebody is
// still there who can be deleted again, not gone who was wanted.

import { byId, call, count, deleting, element, find, headers, tell } from "./roster.js";

const UNDO_SECONDS = 8;

/** Hide a user now, and delete it later. */
export function remove(user) {
  const request = { method: "DELETE", version: user.version };
  const path = `users/${user.id}`;
  const button = element("button", { ariaLabel: `Undo: keep ${user.name}` }, "Undo");
  const notice = element("li", {}, element("span", {}, `${user.name} is deleted.`), button);
  let timer;
  let done;

  const stop = () => clearTimeout(timer);
  const start = () => {
    stop();
    timer = setTimeout(finish, UNDO_SECONDS * 1000);
  };
  const end = () => {
    stop();
    deleting.delete(user.id);
    notice.remove();
  };
  const keep = () => {
    end();
    const back = find(user.id); // none if the list is another one by now
    if (back) back.hidden = false;
    back?.focus();
    count();
  };
  const undo = () => {
    if (done) return; // it is on its way, or done
    keep();
    tell(`${user.name} is kept.`);
  };
  /** Delete it; it can be called again meanwhile, by what needs it done. */
  const finish = () => (done ??= send());

  async function send() {
    stop();
    notice.remove();
    try {
      await call(path, request);
    } catch (error) {
      if (error.status !== 404) {
        keep();
        const changed = "Somebody else has changed this person meanwhile.";
        return report(`${user.name} is not deleted. ${error.status === 412 ? changed : error.message}`);
      }
    }
    end();
    find(user.id)?.remove();
    count();
  }

  // Nobody is there any more to hear the answer.
  const leave = () => {
    end();
    fetch(path, { ...request, headers: headers(request), keepalive: true });
  };

  button.onclick = undo;
  // Who is on the way to the button has all the time it takes.
  for (const event of ["pointerenter", "focusin"]) notice.addEventListener(event, stop);
  for (const event of ["pointerleave", "focusout"]) notice.addEventListener(event, start);
  deleting.set(user.id, { email: user.email, finish, leave, undo });

  const rows = [...byId("people").querySelectorAll("li:not([hidden])")];
  const place = rows.indexOf(find(user.id));
  find(user.id).hidden = true;
  (rows[place + 1] ?? rows[place - 1] ?? byId("count")).focus();
  byId("undo").append(notice);
  tell(`${user.name} is deleted. Control Z undoes it.`);
  count();
  start();
}

/** Say something until it has been read. */
function report(text) {
  const button = element("button", { onclick: () => notice.remove() }, "Close");
  const notice = element("li", {}, element("span", {}, text), button);
  byId("undo").append(notice);
  tell(text);
}

addEventListener("pagehide", () => deleting.forEach((one) => one.leave()));
addEventListener("keydown", (event) => {
  const undoKey = event.key === "z" && (event.ctrlKey || event.metaKey);
  // In a field with text, it undoes the typing.
  if (undoKey && !event.target.value) [...deleting.values()].at(-1)?.undo();
});
