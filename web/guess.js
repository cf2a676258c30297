// What a file most likely means: its encoding, separator, columns and values. The command line
// follows the same rules. All of it is a guess that the preview shows, and that a click changes.

// ---- The file, named by its first bytes

const csv = "save it as CSV UTF-8, and import that file.";
const NO_TEXT = [
  [/^PK[^]*word\//, "This is a Word document: copy its list into a spreadsheet, then " + csv],
  [/^PK[^]*opendocument/, "This is a LibreOffice document: open it in Calc, " + csv],
  [/^PK|^\xd0\xcf\x11\xe0/, "This is an Excel workbook: open it in Excel, " + csv],
  [/^%PDF/, "This is a PDF: export the list from the program that made it, as CSV UTF-8."],
  [/^(\x89PNG|\xff\xd8\xff|GIF8|BM[^]{4}\0\0\0\0|RIFF[^]{4}WEBP|[^]{4}ftyp)/, "This is a picture: a list has to be text, for example a CSV file."],
  [/^(\xef\xbb\xbf)?\s*BEGIN:VC(ARD|ALENDAR)/i, "This is a vCard or a calendar: export the contacts as CSV instead."],
  [/^(\xef\xbb\xbf)?\s*<(\?xml|!doctype|html|head|meta|table)/i, "This is a web page or XML: open it in a spreadsheet, " + csv],
  [/^(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*[{"[])/, "This is JSON, which is for programs: export the list as CSV instead."],
];

// Each has a language in which a browser says that it is likely, and goes before those after it.
export const ENCODINGS = {
  "windows-1252": ["Western European", /^(de|fr|es|it|pt|nl|sv|da|nb|fi|en)/],
  "windows-1254": ["Turkish", /^tr/],
  "windows-1250": ["Central European", /^(cs|hr|hu|pl|ro|sk|sl|bs|sq)/],
  "windows-1251": ["Cyrillic", /^(ru|uk|bg|sr|mk|be)/],
  "windows-1253": ["Greek", /^el/],
  "windows-1257": ["Baltic", /^(et|lt|lv)/],
  macintosh: ["Western European, Macintosh", /^$/],
  ibm850: ["Western European, DOS", /^$/],
  shift_jis: ["Japanese", /^ja/],
  gb18030: ["Chinese", /^zh/],
  big5: ["Chinese, traditional", /^zh-(tw|hk|hant)/i],
  "euc-kr": ["Korean", /^ko/],
  "windows-1255": ["Hebrew", /^he/],
  "windows-1256": ["Arabic", /^(ar|fa|ur)/],
};
const DOS =
  "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜø£Ø×ƒáíóúñÑªº¿®¬½¼¡«»░▒▓│┤ÁÂÀ©╣║╗╝¢¥┐└┴┬├─┼ãÃ╚╔╩╦╠═╬¤ðÐÊËÈıÍÎÏ┘┌█▄¦Ì▀ÓßÔÒõÕµþÞÚÛÙýÝ¯´\u00ad±‗¾¶§÷¸°¨·¹³²■\u00a0";

// What no name has: a sign in a word, a capital after a small letter, two scripts in a word,
// many accented letters in a row, and letters of a few languages that bytes of other ones look like.
const ODD = [
  /[\x80-\x9f\ufffd]/g,
  /\p{L}[^\0-\x7f\p{L}\p{M}’·–—»”“…\u00a0]|[^\0-\x7f\p{L}\p{M}‘’·–—«“„¿¡\u00a0]\p{L}|\p{L}[„”“‚»«…\u00a0]\p{Ll}/gu,
  /\p{Ll}[^\0-\x7f\P{Lu}]/gu,
  /[a-z][\u0370-\uffff]|[\u0370-\u1fff\u2e80-\uffff][a-z]/gi,
  /[\xc0-\u024f]{3}|[\u3130-\u318f\uff61-\uff9f]/g,
  /[øì][á-ý]|[á-ý][øì]|[ðþÐÞ]/g,
];
const oddity = (text) => ODD.reduce((sum, odd) => sum + (text.match(odd)?.length ?? 0), 0);

/** Return the text of bytes in this encoding. Throws if they are not in it. */
export function decode(bytes, encoding) {
  if (encoding === "ibm850") return Array.from(bytes, (byte) => (byte < 128 ? String.fromCharCode(byte) : DOS[byte - 128])).join("");
  return new TextDecoder(encoding, { fatal: true }).decode(bytes);
}

/** Return the encoding that bytes are most likely in, and whether that is certain. Throws an Error in words. */
export function guessEncoding(bytes, languages) {
  const head = Array.from(bytes.subarray(0, 4000), (byte) => String.fromCharCode(byte)).join("");
  const known = NO_TEXT.find(([sign]) => sign.test(head));
  if (known) throw new Error(known[1]);
  const zeros = (at) => head.match(/[^][^]/g)?.filter((pair) => pair[at] === "\0").length > head.length / 5;
  if (/^\xff\xfe/.test(head) || zeros(1)) return ["utf-16le", true];
  if (/^\xfe\xff/.test(head) || zeros(0)) return ["utf-16be", true];
  if (head.match(/[\0-\x08\x0e-\x19\x1b-\x1f]/g)?.length > head.length / 500 || head.includes("\0"))
    throw new Error(`This is not a text file: open it in the program that made it, ${csv}`);
  let best = ["windows-1252", false];
  let least = Infinity;
  const likely = Object.keys(ENCODINGS).filter((code) => languages.some((language) => ENCODINGS[code][1].test(language)));
  for (const encoding of ["utf-8", ...likely, ...Object.keys(ENCODINGS)]) {
    try {
      const text = decode(bytes, encoding);
      if (encoding === "utf-8") return [encoding, true];
      const odd = oddity(text.slice(0, 50_000));
      if (odd < least) [best, least] = [[encoding, false], odd];
    } catch {
      // These bytes are in another encoding.
    }
  }
  return best;
}

// ---- Rows

/**
 * Return the rows of a text that are not blank, {line, cells}: RFC 4180, but a quote may stand unescaped.
 *
 * The separator is the one that most of the first lines agree on; "sep=;" is Excel's own way to name it.
 */
function parse(text) {
  const [whole, named] = text.match(/^\ufeff?"?sep=(.)"?\r?\n/i) ?? text.match(/^\ufeff?/);
  const after = whole.includes("\n") ? 2 : 1;
  const body = text.slice(whole.length);
  const agreement = (mark) => {
    const rows = split(body, mark, 0, 50).map(({ cells }) => cells);
    const widths = rows.map((cells) => cells.length).filter((width) => width > 1);
    const most = Math.max(0, ...widths.map((width) => widths.filter((other) => other === width).length));
    return most + rows.filter((cells) => cells.length > 1 && cells.some((cell) => ADDRESS.test(cell))).length;
  };
  const marks = [",", ";", "\t", "|"].map((mark) => [agreement(mark), mark]);
  const rows = split(body, named ?? marks.reduce((best, other) => (other[0] > best[0] ? other : best))[1], after);
  // Some programs put each line in quotes once more.
  const again = body.startsWith('"') && rows.every(({ cells }) => cells.length === 1 && /[,;\t]/.test(cells[0]));
  return again ? parse(rows.map(({ cells }) => cells[0]).join("\n")) : rows;
}

function split(text, mark, line, limit = Infinity) {
  const sign = mark.replace(/[|\\^$.*+?()[\]{}]/, "\\$&");
  const end = `${sign}|\\r\\n|\\r|\\n|$`;
  // A cell in quotes (two of them are one), or else all up to the next separator; then what ends it.
  const cell = new RegExp(`[ \\u00a0]*"([^"]*(?:(?:""|"(?! *(?:${end})))[^"]*)*)" *(${end})|([^${sign}\\r\\n]*)(${end})`, "y");
  const rows = [];
  let row = { line, cells: [] };
  while ((cell.lastIndex < text.length || row.cells.length) && rows.length < limit) {
    const [all, quoted, after, plain, ending = after] = cell.exec(text);
    row.cells.push((quoted?.replaceAll('""', '"') ?? plain).trim());
    line += all.match(/\r\n|\r|\n/g)?.length ?? 0;
    if (ending === mark) continue;
    if (row.cells.some(Boolean)) rows.push(row);
    row = { line, cells: [] };
  }
  return rows;
}

/** Return the rows of a pasted "To:" line, or of a list of addresses alone, [name, address]; else null. */
function addressList(text) {
  const line = text.replace(/^\ufeff?\s*(to|cc|bcc|an|à|para|a|do|aan|till)\s*:/i, "").replace(/\r?\n[ \t]+/g, " ");
  for (const mark of [";", ";,"]) {
    const piece = new RegExp(`(?:"(?:[^"\\\\]|\\\\.)*"|<[^>]*>|[^"<${mark}\\r\\n]|["<])+`, "g");
    const pieces = (line.match(piece) ?? []).map((one) => one.trim()).filter(Boolean);
    const found = pieces.map((one) => one.match(/^(?:"((?:[^"\\]|\\.)*)"|'([^<]*)'|([^<@]*?))\s*<\s*(\S+@\S+?)\s*>$|^<?(?:mailto:)?([^\s@<>,;|"]+@[^\s@<>,;|"]+)>?$/i));
    if (found.length && found.every(Boolean))
      return found.map(([, a, b, c, d, e], at) => ({ line: at + 1, cells: [(a ?? b ?? c ?? "").replace(/\\(.)/g, "$1"), d ?? e] }));
  }
  return null;
}

/** Return the rows of a text, whichever it is. */
export const readRows = (text) => addressList(text) ?? parse(text);

// ---- Columns

// How columns are called, without accents, case and signs. What ends in * may be part of a longer title.
const TITLES = {
  first:
    "first, fname, first name*, given name*, forename*, vorname*, rufname, prénom*, nombre, nombres, nome, primeiro nome, voornaam*, roepnaam, imię, jméno, křestní jméno, meno, keresztnév, utónév, förnamn*, fornavn*, etunimi, eesnimi, ad, adı, isim, prenume, ime, όνομα, имя, ім'я, име, vārds, vardas, 名, שם פרטי, الاسم الأول",
  middle:
    "middle name*, additional name, weitere vornamen, zweiter vorname, segundo nombre, tussenvoegsel*, отчество, по батькові, mellannamn, mellemnavn, mellomnavn",
  last:
    "last, lname, last name*, family name*, surname*, nachname*, familienname*, zuname, nom de famille*, apellido*, cognome, sobrenome, apelido, achternaam*, nazwisko, příjmení, priezvisko, vezetéknév, családnév, efternamn*, efternavn*, etternavn*, sukunimi, perekonnanimi, soyad, soyadı, soyisim, nume de familie, prezime, priimek, επώνυμο, επίθετο, фамилия, прізвище, uzvārds, pavardė, 姓, 성, שם משפחה, اسم العائلة",
  // Alone the whole name; beside a first name the last one, beside a last name the first one.
  name: "name, nom, naam, namn, navn, nimi, név, nume, nafn",
  whole:
    "full name*, display name*, anzeigename*, vor- und nachname, name vorname, vorname name, nachname vorname, vorname nachname, nom complet, nom et prénom, prénom et nom, nom prénom, nombre completo, nombre y apellidos, apellidos y nombre, nome completo, nome e cognome, cognome e nome, imię i nazwisko, nazwisko i imię, celé jméno, jméno a příjmení, meno a priezvisko, teljes név, fullständigt namn, fulde navn, fullt navn, koko nimi, ad soyad, adı soyadı, ime i prezime, ονοματεπώνυμο, фио, піб, полное имя, 氏名*, 名前*, 姓名*, 이름, 성명, 성함, שם, שם מלא, الاسم, الاسم الكامل, person, contact, kontakt, mitglied, teilnehmer, attendee, participant, name*",
  mail:
    "mail*, courriel*, correo*, courrier électronique, messagerie*, posta elettronica, posta*, epost*, sähköposti*, el. paštas, почта*, пошта*, メール*, 邮箱*, 郵箱, 邮件*, 電郵, 電子郵件, 이메일*, 메일, البريد*, דואר*, דוא\"ל, ηλεκτρονικ*, ταχυδρομειο*, імейл, имейл",
};
// A column beside the one that is meant.
const BESIDE = /phonetic|yomi|company|compan|firma|organi[sz]|manager|assist|typ$|type$|label|status|opt|consent|verified|date|angezeigt|2|3|second|zweit|sekund|alternat|other|count|domain|parent|recovery/;
const NO_NAME = /user|login|nick|file|event|ticket|product|venue|group|list|street|spitzname|messenger|screen/;
// In these languages the last name goes first.
const LAST_FIRST = /^(vezetek|csalad|姓|성)/;

const plain = (title) =>
  title.replace(/[[(].*?[\])]/g, "").normalize("NFKD").toLowerCase().replace(/[^\p{L}\p{N}]/gu, "").replaceAll("ı", "i");
const ROLES = Object.entries(TITLES).flatMap(([role, titles]) =>
  titles.split(", ").map((title) => ({ role, word: plain(title), part: title.endsWith("*") })),
);

/** Return what a column's title says that it holds: the whole title, or else the longest word in it. */
function role(title) {
  const key = plain(title);
  const parts = ROLES.filter(({ word, part }) => part && key.includes(word)).sort((a, b) => b.word.length - a.word.length);
  const found = (ROLES.find(({ word }) => word === key) ?? parts[0])?.role;
  return found !== "mail" && (NO_NAME.test(key) || BESIDE.test(key)) ? undefined : found;
}

/** Return how surely a column holds the addresses that are meant: by its title, and by how many it has. */
function mailScore(title, cells) {
  const named = role(title) === "mail";
  const found = cells.filter((text) => ADDRESS.test(text ?? "")).length;
  return (found + (named ? 0.5 : 0)) * (BESIDE.test(plain(title)) ? 0.1 : named ? 2 : 1);
}

/** Return {header: its line or undefined, titles, rows: those after it, columns: {field: [indices, in order]}}. */
export function guessColumns(rows, fields) {
  const mail = fields.find(({ kind }) => kind === "email");
  const width = Math.max(0, ...rows.slice(0, 500).map(({ cells }) => cells.length));
  const all = Array.from({ length: width }, (_, column) => column);
  const known = (field, title) => [plain(field.name), plain(field.label)].includes(plain(title));
  const filled = (cells) => cells.filter(Boolean).length;
  const hasAddress = ({ cells }) => cells.some((text) => ADDRESS.test(text));
  const best = (at) => {
    const below = rows.slice(at + 1, at + 500);
    const scores = all.map((column) => [mailScore(rows[at]?.cells[column] ?? "", below.map(({ cells }) => cells[column])), column]);
    return scores.reduce((most, other) => (other[0] > most[0] ? other : most), [0, -1]);
  };
  // The header: of the first 30 rows without an address, those with a title that is known, and more than that
  // one cell. Of several, the one with the most addresses below; of none, the row above the first address.
  const titled = ({ cells }) => cells.some((text) => text && ((mail && role(text)) || fields.some((field) => known(field, text))));
  const candidates = rows.slice(0, 30).flatMap((row, at) => (!hasAddress(row) && filled(row.cells) >= Math.min(2, width) && titled(row) ? [at] : []));
  const first = rows.findIndex(hasAddress);
  if (!candidates.length && mail && first > 0 && width > 1 && filled(rows[first - 1].cells) >= filled(rows[first].cells)) candidates.push(first - 1);
  const at = mail ? candidates.reduce((most, other) => (best(other)[0] > best(most)[0] ? other : most), candidates[0] ?? -1) : (candidates[0] ?? -1);
  const titles = all.map((column) => rows[at]?.cells[column] ?? "");
  const below = rows.slice(at + 1);
  const columns = {};
  for (const field of fields) columns[field.name] = all.filter((column) => known(field, titles[column])).slice(0, 1);
  if (mail) {
    columns[mail.name] = [best(at)[1]].filter((column) => column >= 0);
    if (columns.name) columns.name = nameColumns(titles, below, columns[mail.name]);
  }
  return { header: rows[at]?.line, titles, rows: below, columns };
}

function nameColumns(titles, rows, mail) {
  const found = {};
  titles.forEach((title, column) => title && (found[role(title)] ??= column));
  const columns = (...roles) => roles.map((name) => found[name]).filter((column) => column !== undefined);
  const last = columns("last", "first").length === 2 ? "last" : found.last === undefined ? "name" : "last";
  const first = found.first === undefined ? "name" : "first";
  const inOrder = LAST_FIRST.test(plain(titles[found.last] ?? "")) ? [last, first, "middle"] : [first, "middle", last];
  const parts = found.first === undefined && found.last === undefined ? [] : columns(...inOrder);
  const whole = columns("whole", "name").slice(0, 1);
  const filled = (some) => rows.filter(({ cells }) => some.some((column) => cells[column])).length;
  if (parts.length || whole.length) return filled(parts) >= filled(whole) && parts.length ? parts : whole;
  // Of two columns, the other one must be it.
  return titles.length === 2 ? [0, 1].filter((column) => !mail.includes(column)) : [];
}

// ---- Values

const ADDRESS = /[^\s<>()[\]"',;:|@]+@[^\s<>()[\]"',;:|@]+\.[^\s<>()[\]"',;:|@.]+/;
// Zero-width characters, soft hyphens, marks of direction. Joiners belong to some languages' names.
const INVISIBLE = /[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** Return a cell without what a spreadsheet or an export puts around it, on one line. */
const tidy = (text) =>
  text.replace(INVISIBLE, "").replace(/^="(.*)"$/, "$1").replace(/^'(?='*[=+\-@＝＋－＠])/, "").replace(/\s+/g, " ").trim();

/** Return the first address in a text, or else the text. */
function toAddress(text) {
  const at = text.replace(/[\u200c\u200d]/g, "").replace(/ ?[[({] ?(at|@) ?[\])}] ?/gi, "@").replace(/ ?[[({] ?(dot|\.) ?[\])}] ?/gi, ".");
  return at.replace(/mailto:/gi, " ").replace(/\?\S*/, "").match(ADDRESS)?.[0] ?? at;
}

/** Return the name beside an address; or else one made of it: nora.beispiel@example.com is Nora Beispiel. */
function nameBeside(text, address) {
  const beside = text.replace(/<[^>]*>/g, " ").replaceAll(new RegExp(ADDRESS, "g"), " ").replace(/mailto:/gi, "").trim();
  if (/\p{L}/u.test(beside)) return beside.replace(/^["'](.*)["']$/, "$1");
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
  const mail = fields.find(({ kind }) => kind === "email");
  const lines = new Map(); // by address
  return rows.map(({ line, cells }) => {
    const text = ({ name }) => columns[name].map((column) => tidy(cells[column] ?? "")).filter(Boolean).join(" ");
    const filled = fields.filter(text);
    const values = Object.fromEntries(filled.map((field) => [field.name, toValue(field, text(field))]));
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
