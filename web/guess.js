// What a file most likely means: its encoding, separator, columns and values. All of it is a guess that
// the preview shows and a click changes. guess.json has the words that the command line guesses by, too.
// titles: what columns are called. What ends in * may be part of a longer title. "name" alone is the whole name; beside
// a first name it is the last one, beside a last name the first one. beside: a column next to the one that is meant.
// last_first: in these languages the last name goes first. no_list: what is no list, by its first bytes.
const rules = await (await fetch(new URL("guess.json", import.meta.url))).json();
const [BESIDE, NO_NAME, LAST_FIRST] = [rules.beside, rules.no_name, rules.last_first].map((rule) => new RegExp(rule));
// Name, label, and the languages of a browser that make it the first guess. Else the first that fits best is taken.
export const ENCODINGS = [
  ["windows-1252", "Western European", /^(de|fr|es|it|pt|nl|sv|da|nb|fi)/],
  ["windows-1254", "Turkish", /^tr/],
  ["windows-1250", "Central European", /^(cs|hr|hu|pl|ro|sk|sl|bs|sq)/],
  ["windows-1251", "Cyrillic", /^(ru|uk|bg|sr|mk|be)/],
  ["windows-1253", "Greek", /^el/],
  ["macintosh", "Western European, Macintosh", /^$/],
  ["ibm850", "Western European, DOS", /^$/],
  ["shift_jis", "Japanese", /^ja/],
  ["gb18030", "Chinese", /^zh/],
  ["euc-kr", "Korean", /^ko/],
  ...[["windows-1257", "Baltic", /^(et|lt|lv)/], ["windows-1255", "Hebrew", /^he/], ["windows-1256", "Arabic", /^(ar|fa|ur)/]],
];
// Browsers do not know it. It begins at byte 128.
const IBM850 =
  "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜø£Ø×ƒáíóúñÑªº¿®¬½¼¡«»░▒▓│┤ÁÂÀ©╣║╗╝¢¥┐└┴┬├─┼ãÃ╚╔╩╦╠═╬¤ðÐÊËÈıÍÎÏ┘┌█▄¦Ì▀ÓßÔÒõÕµþÞÚÛÙýÝ¯´\u00ad±‗¾¶§÷¸°¨·¹³²■\u00a0";
// What a name does not have: control characters; a sign in a word; a capital after a small letter; two scripts in
// a word; many accents in a row; letters of small languages, which the bytes of larger ones look like.
const ODD = [
  /[\x80-\x9f\ufffd]/g,
  /\p{L}[^\0-\x7f\p{L}\p{M}’·–—»”“…\u00a0]|[^\0-\x7f\p{L}\p{M}‘’·–—«“„¿¡\u00a0]\p{L}|\p{L}[„”“‚»«…\u00a0]\p{Ll}/gu,
  /\p{Ll}[^\0-\x7f\P{Lu}]/gu,
  /[a-z][\u0370-\uffff]|[\u0370-\u1fff\u2e80-\uffff][a-z]/gi,
  /[\xc0-\u024f]{3}|[\u3130-\u318f\uff61-\uff9f]/g,
  /[øì][á-ý]|[á-ý][øì]|[ðþÐÞ]/g,
];
/** Return the text of bytes in this encoding; throw if it is fatal that they are not in it. */
export function decode(bytes, encoding, fatal = false) {
  if (encoding !== "ibm850") return new TextDecoder(encoding, { fatal }).decode(bytes);
  return Array.from(bytes, (byte) => IBM850[byte - 128] ?? String.fromCharCode(byte)).join("");
}
/** Return the encoding of a file, and whether it is certain. Throws an Error that a person can read. */
export function guessEncoding(bytes, languages) {
  const head = Array.from(bytes.subarray(0, 4000), (byte) => String.fromCharCode(byte)).join("");
  for (const [sign, sentence] of rules.no_list) if (new RegExp(sign, "i").test(head)) throw new Error(sentence);
  const zeros = (at) => head.match(/[^][^]/g)?.filter((pair) => pair[at] === "\0").length > head.length / 5;
  const wide = /^\xff\xfe/.test(head) || zeros(1) ? "utf-16le" : /^\xfe\xff/.test(head) || zeros(0) ? "utf-16be" : "";
  if (!wide && (head.match(/[\0-\x08\x0e-\x19\x1b-\x1f]/g)?.length ?? 0) > head.length / 500) throw new Error(rules.no_text);
  const likely = ENCODINGS.filter(([, , known]) => languages.some((language) => known.test(language)));
  let [best, least] = ["", Infinity];
  for (const [encoding] of wide ? [[wide]] : [["utf-8"], ...likely, ...ENCODINGS]) {
    try {
      const text = decode(bytes, encoding, true).slice(0, 50_000);
      if (encoding.startsWith("utf")) return [encoding, true];
      const known = text.split(/[\r\n]+/, 9).join().split(/[,;\t|"]/).filter((title) => /[^\0-\x7f]/.test(title) && role(title));
      const odd = ODD.reduce((sum, sign) => sum + (text.match(sign)?.length ?? 0), -9 * known.length);
      if (odd < least) [best, least] = [encoding, odd];
    } catch {} // these bytes are in another encoding
  }
  if (!best) throw new Error(rules.no_text);
  return [best, false];
}

// ---- Rows: {line, cells}, without blank ones
/** Return the rows of a text: of a table, or of a list of addresses. */
export const readRows = (text) => addressList(text) ?? table(text);
/** Return the rows of a table: its separator is the one that most of the first lines agree on. */
function table(text) {
  const [start, named] = text.match(/^\ufeff?"?sep=(.)"?\r?\n/i) ?? text.match(/^\ufeff?/); // Excel's own first line
  const body = text.slice(start.length);
  const agreement = (mark) => {
    const wide = split(body, mark, 0, 50).map(({ cells }) => cells).filter((cells) => cells.length > 1);
    const alike = wide.map((cells) => wide.filter((other) => other.length === cells.length).length);
    return Math.max(0, ...alike) + wide.filter((cells) => cells.some((cell) => ADDRESS.test(cell))).length;
  };
  const most = [",", ";", "\t", "|"].map((mark) => [agreement(mark), mark]).reduce((a, b) => (b[0] > a[0] ? b : a));
  const rows = split(body, named ?? most[1], named ? 2 : 1);
  // Some programs put each line in quotes once more.
  const again = body.startsWith('"') && rows.every(({ cells }) => cells.length === 1 && /[,;\t]/.test(cells[0]));
  return again ? table(rows.map(({ cells }) => cells[0]).join("\n")) : rows;
}
/** Split a text as RFC 4180 says, but a quote may stand unescaped in a cell. */
function split(text, mark, line, limit = Infinity) {
  const end = `[${mark}]|\\r\\n|\\r|\\n|$`;
  // A cell in quotes, of which two are one; or on one line, with quotes in it; or all up to the separator. Then what ends it.
  const quotes = `([^"]*(?:""[^"]*)*)|([^"\\r\\n]*(?:(?:""|"(?!"| *(?:${end})))[^"\\r\\n]*)*)`;
  const cell = new RegExp(`[ \\u00a0]*"(?:${quotes})" *(${end})|([^${mark}\\r\\n]*)(${end})`, "y");
  const rows = [];
  let row = { line, cells: [] };
  while ((cell.lastIndex < text.length || row.cells.length) && rows.length < limit) {
    const [all, quoted, loose, after, plain, ending = after] = cell.exec(text);
    row.cells.push((plain ?? (quoted ?? loose).replaceAll('""', '"')).trim());
    line += all.match(/\r\n|\r|\n/g)?.length ?? 0;
    if (ending === mark) continue;
    if (/[\p{L}\p{N}]/u.test(row.cells)) rows.push(row); // else it is blank, or a line that is drawn
    row = { line, cells: [] };
  }
  return rows;
}
/** Return the rows [name, address] of a "To:" line or of bare addresses; null if the text has anything else. */
function addressList(text) {
  const line = text.replace(/^\ufeff?\s*(to|cc|bcc|an|à|para|a|do|aan|till)\s*:/i, "").replace(/\r?\n[ \t]+/g, " ");
  for (const mark of text.length < 200_000 ? [";", ";,"] : []) {
    const piece = new RegExp(`(?:"(?:[^"\\\\]|\\\\.)*"|<[^>\\r\\n]*>|[^"<${mark}\\r\\n]|["<])+`, "g");
    const pieces = (line.match(piece) ?? []).map((one) => one.trim()).filter(Boolean);
    const address = /^(?:("(?:[^"\\]|\\.)*"|[^<@]*?|'[^<]*')\s*<\s*(\S+@\S+?)\s*>|(?:mailto:)?([^\s@<>,;|"]+@[^\s@<>,;|"]+))$/i;
    const found = pieces.map((one) => one.match(address));
    const unquoted = (name) => name.replace(/^(["'])(.*)\1$/, "$2").replace(/\\(.)/g, "$1");
    if (!found.length || !found.every(Boolean)) continue;
    return found.map(([, name = "", email, bare], at) => ({ line: at + 1, cells: [unquoted(name), email ?? bare] }));
  }
  return null;
}

// ---- Columns, by their titles without accents, case and signs
const plain = (title) => title.replace(/[[(].*?[\])]/g, "").normalize("NFKD").toLowerCase().replace(/[^\p{L}\p{N}]/gu, "").replaceAll("ı", "i");
const ROLES = Object.entries(rules.titles).flatMap(([role, titles]) => titles.split(", ").map((title) => [role, plain(title), title.endsWith("*")]));
/** Return what a column's title says that it holds: the whole title, or else the longest word in it. */
function role(title) {
  const key = plain(title);
  const exact = ROLES.find(([, word]) => word === key);
  const [found] = exact ?? ROLES.filter(([, word, part]) => part && key.includes(word)).sort((a, b) => b[1].length - a[1].length)[0] ?? [];
  return !exact && found !== "mail" && (NO_NAME.test(key) || BESIDE.test(key)) ? undefined : found;
}
/** Return {header: its line or undefined, titles, rows: those below, columns: {field: [indices, in order]}}. */
export function guessColumns(rows, fields) {
  const mail = fields.find(({ kind }) => kind === "email");
  const all = [...Array(Math.max(0, ...rows.slice(0, 500).map(({ cells }) => cells.length))).keys()];
  const filled = (cells) => cells.filter(Boolean).length;
  const hasAddress = ({ cells }) => cells.some((text) => ADDRESS.test(text));
  const isFor = (field, title) => title && [plain(field.name), plain(field.label)].includes(plain(title));
  // Of the columns with addresses, the one whose title says so and that has the most.
  const mailColumn = (header) => {
    const below = rows.slice(header + 1, header + 500);
    const score = (column) => {
      const title = rows[header]?.cells[column] ?? "";
      const found = below.filter(({ cells }) => ADDRESS.test(cells[column] ?? "")).length;
      const named = role(title) === "mail";
      return (found + (named ? 0.5 : 0)) * (BESIDE.test(plain(title)) ? 0.1 : named ? 2 : 1);
    };
    return all.map((column) => [score(column), column]).reduce((a, b) => (b[0] > a[0] ? b : a), [0, -1]);
  };
  // Above the header are titles and notes. It has no address, a title that is known (below an address two: "Bo, no mail" is a
  // person), and more than one cell; of several such rows it is the one with the most addresses below, of none the row above the first.
  const isKnown = (text) => (mail && text && role(text)) || fields.some((field) => isFor(field, text));
  const isHeader = (row) => !hasAddress(row) && filled(row.cells) >= Math.min(2, all.length) && row.cells.some(isKnown);
  const first = rows.findIndex(hasAddress);
  const above = first > 0 && all.length > 1 && filled(rows[first - 1].cells) >= filled(rows[first].cells) ? [first - 1] : [];
  const headers = [...rows.slice(0, 30).keys()].filter((at) => isHeader(rows[at]) && rows[at].cells.filter(isKnown).length > (first >= 0 && first < at));
  const candidates = headers.length || !mail ? headers : above;
  const at = candidates.reduce((best, other) => (mail && mailColumn(other)[0] > mailColumn(best)[0] ? other : best), candidates[0] ?? -1);
  const titles = all.map((column) => rows[at]?.cells[column] ?? "");
  const below = rows.slice(at + 1);
  const columns = Object.fromEntries(fields.map((field) => [field.name, all.filter((column) => isFor(field, titles[column])).slice(0, 1)]));
  if (mail) columns[mail.name] = [mailColumn(at)[1]].filter((column) => column >= 0);
  if (mail && columns.name) columns.name = nameColumns(titles, below, columns[mail.name]);
  return { header: rows[at]?.line, titles, rows: below, columns };
}
function nameColumns(titles, rows, mail) {
  const found = {};
  titles.forEach((title, column) => title && (found[role(title)] ??= column));
  const columns = (...roles) => roles.map((name) => found[name]).filter((column) => column !== undefined);
  const filled = (some) => rows.filter(({ cells }) => some.some((column) => cells[column])).length;
  const first = "first" in found ? "first" : "name";
  const last = "last" in found ? "last" : "name";
  const order = LAST_FIRST.test(plain(titles[found.last] ?? "")) ? [last, first, "middle"] : [first, "middle", last];
  const parts = first === last ? [] : columns(...order);
  const whole = columns("whole", "name").sort((a, b) => mail.includes(a) - mail.includes(b)).slice(0, 1); // one may have both
  if (parts.length || whole.length) return parts.length && filled(parts) >= filled(whole) ? parts : whole;
  // Of two columns, the other one must be it. Of more, a person has to say.
  return titles.length === 2 ? [0, 1].filter((column) => !mail.includes(column)) : [];
}
const ADDRESS = /(?<![^\s<>()[\]"',;:|@])[^\s<>()[\]"',;:|@]+@[^\s<>()[\]"',;:|@]+\.[^\s<>()[\]"',;:|@.]+/;
// Zero-width characters, soft hyphens, marks of direction. Joiners belong to some languages' names.
const INVISIBLE = /[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
/** Return a cell on one line, without what a spreadsheet or an export puts around it. */
const tidy = (text) =>
  text.slice(0, 9000).replace(INVISIBLE, "").replace(/^="(.*)"$/, "$1").replace(/(?:^|(?<=[;\t\r\n]))'(?=['"]*[=+\-@＝＋－＠])/g, "").replace(/\s+/g, " ").trim();
/** Return the first address in a text, or else the text. */
function toAddress(text) {
  const at = text.replace(/[\u200c\u200d]/g, "").replace(/ ?[[({] ?(at|@) ?[\])}] ?/gi, "@").replace(/ ?[[({] ?(dot|\.) ?[\])}] ?/gi, ".");
  return at.replace(/mailto:/gi, " ").replace(/\?\S*/, "").match(ADDRESS)?.[0] ?? at;
}
/** Return the name beside an address; or else one made of it: nora.beispiel@example.com is Nora Beispiel. */
function nameBeside(text, address) {
  const beside = text.replace(/<[^>]*>/g, " ").replaceAll(new RegExp(ADDRESS, "g"), " ").replace(/mailto:/gi, "").trim();
  if (/\p{L}/u.test(beside)) return beside.replace(/^(["'])(.*)\1$/, "$2");
  return address.replace(/[+@].*/, "").replace(/[._-]+/g, " ").trim().replace(/(^| )\p{Ll}/gu, (start) => start.toUpperCase());
}
const YES = /^(yes|y|true|1|x|✓|ja|j|oui|o|vrai|wahr|sí|si|s|tak|да)$/i;
const NO = /^(no|n|false|0|nein|non|faux|falsch|nie|нет)$/i;
/** Return what the API takes for a field of this kind, if the text means one, or else the text. */
function toValue({ kind, options }, text) {
  if (kind === "email") return toAddress(text);
  if (kind === "yesno") return YES.test(text) || (NO.test(text) ? false : text);
  if (kind === "number") return /^-?(\d{1,3}(\.\d{3})+|\d+),\d+$/.test(text) ? text.replaceAll(".", "").replace(",", ".") : text;
  if (kind === "date") return text.replace(/^(\d\d?)\.(\d\d?)\.(\d{4})$/, (_, day, month, year) => `${year}-${month.padStart(2, 0)}-${day.padStart(2, 0)}`);
  if (kind === "choice") return options.find((option) => String(option).toLowerCase() === text.toLowerCase()) ?? text;
  return text;
}
/** Return the rows as they would be stored: {line, values, result, why}; a result says why one is left out. */
export function toItems(rows, fields, columns) {
  const mail = fields.find(({ kind, required }) => kind === "email" && required);
  const lines = new Map(); // by address
  return rows.map(({ line, cells }) => {
    const text = ({ name }) => columns[name].map((column) => tidy(cells[column] ?? "")).filter(Boolean).join(" ");
    const values = Object.fromEntries(fields.filter(text).map((field) => [field.name, toValue(field, text(field))]));
    const item = { line, values, result: "", why: "" };
    if (!mail) return item;
    const address = values[mail.name];
    if (!address) return { ...item, result: "skipped", why: "No address." };
    if (columns.name && ADDRESS.test(address) && (!values.name || ADDRESS.test(values.name))) values.name = nameBeside(values.name ?? text(mail), address);
    const key = address.normalize("NFKC").toLowerCase();
    if (lines.has(key)) return { ...item, result: "skipped", why: `Line ${lines.get(key)} has the same address.` };
    lines.set(key, line);
    return item;
  });
}
