// The API's tables, as openapi.json describes them: no field of any table is named here.

import { byId, call, day, element, minute, table } from "./roster.js";

const api = await call("openapi.json");
/** Return a schema with what it refers to in its place. */
const full = (schema = {}) =>
  schema.$ref ? { ...full(schema.$ref.slice(2).split("/").reduce((node, key) => node[key], api)), ...schema } : schema;
const schemaOf = (part) => full(part?.content?.["application/json"]?.schema);
const words = (name) => name.replace(/([a-z])([A-Z])/g, "$1 $2").replace(/[_-]+/g, " ").toLowerCase();
/** Return the field that a schema describes. One of a kind that the page does not know is only shown. */
function field(name, given, required) {
  const kinds = (given.anyOf ?? given.allOf ?? [given]).map(full);
  const some = kinds.filter(({ type }) => type !== "null");
  const exact = some.length === 2 && some.every(({ type }) => /number|string/.test(type)); // a Decimal, which is sent as text
  const schema = { ...some[0], ...(exact && { type: "number", exact }), ...full(given) };
  const type = { boolean: "yesno", integer: "number", number: "number", string: "text" }[schema.type];
  const format = { email: "email", date: "date", "date-time": "moment" }[schema.format];
  const to = schema["x-references"] ?? name.match(/^(.+)_id$/)?.[1];
  const kind = some.length > 1 && !exact ? "other" : to ? "reference" : schema.enum ? "choice" : format ?? type ?? "other";
  // The title of what a $ref leads to is not the field's own.
  const title = given.$ref || !given.title ? words(name).replace(/^./, (first) => first.toUpperCase()) : given.title;
  const label = kind === "reference" ? title.replace(/ id$/i, "") : title;
  return { name, label, kind, to, required, schema, nullable: some.length < kinds.length, options: schema.enum ?? [true, false] };
}
const fieldsOf = ({ properties = {}, required = [] }) => Object.entries(properties).map(([name, given]) => field(name, given, required.includes(name)));
/** Return the table at a path that has a list, create, change and delete; else undefined. */
function describe(path) {
  const { get, post } = api.paths[path];
  const base = path.replace(/\/$/, "");
  const one = Object.keys(api.paths).find((other) => other.startsWith(base) && /^\/\{[^/]*\}$/.test(other.slice(base.length)));
  const page = schemaOf(get?.responses[200]).properties;
  const body = post?.requestBody?.content["application/json"]?.schema;
  if (path.includes("{") || !page?.items || !page.next || !body || !api.paths[one]?.patch || !api.paths[one].delete) return undefined;
  const create = fieldsOf(full(body));
  const texts = create.filter(({ kind }) => kind === "text");
  const name = base.slice(1);
  const many = words(name.split("/").at(-1));
  return {
    ...{ name, path: path.slice(1), many, one: words(body.$ref?.match(/(\w+?)(Create)?$/)[1] ?? many) },
    ...{ create, change: fieldsOf(schemaOf(api.paths[one].patch.requestBody)), read: fieldsOf(full(full(page.items).items)) },
    parameters: Object.fromEntries((get.parameters ?? []).map(({ name, schema }) => [name, full(schema)])),
    title: (texts.find((field) => /^(name|title)$/.test(field.name)) ?? texts[0])?.name,
    email: create.find(({ kind }) => kind === "email")?.name,
    takes: (what) => Boolean(api.paths[`${base}/${what}`]),
  };
}
export const tables = Object.keys(api.paths).map(describe).filter(Boolean);
tables.sort((a, b) => (b.name === "users") - (a.name === "users"));
// A reference says which table it is to, or is named after one.
for (const field of tables.flatMap(({ create, change, read }) => [...create, ...change, ...read]).filter(({ to }) => to)) {
  const to = field.to.replace(/^\/|\/$/g, "");
  field.to = tables.find(({ name }) => [to, `${to}s`, `${to}es`].includes(name));
  if (!field.to) field.kind = { integer: "number", string: "text" }[field.schema.type] ?? "other";
}
Object.assign(table, Object.assign(tables.find(({ name }) => name === "users") ?? {}, table));
/** Make another table the one that this page shows. */
export function become(name) {
  const found = tables.find((other) => other.name === name);
  if (!found) return;
  const sorts = found.parameters.sort?.enum ?? [];
  Object.assign(table, found, { details, sort: sorts.find((sort) => sort === found.title) ?? found.parameters.sort?.default ?? sorts[0] ?? "" });
  const label = (sort) => table.read.find((field) => field.name === sort.replace("-", ""))?.label ?? sort;
  const named = { id: "Oldest first", "-id": "Newest first", [table.title]: "A to Z", [`-${table.title}`]: "Z to A" };
  const option = (value) => element("option", { value }, named[value] ?? `${label(value)}, ${value[0] === "-" ? "descending" : "ascending"}`);
  byId("sort").replaceChildren(...sorts.map(option));
  byId("sort").hidden = !sorts.length;
  byId("text").hidden = !table.parameters.q;
  byId("text").placeholder = byId("text").ariaLabel = `Search ${table.many}`;
  byId("people").ariaLabel = table.many;
  document.title = `Roster: ${table.many}`;
  for (const button of document.querySelectorAll("[data-do=add]")) button.textContent = `Add ${table.one}`;
}
/** Return the fields that a table's rows have for people, besides some. */
export const others = (...but) => table.read.filter(({ name }) => !/^(id|version|created_at|updated_at)$/.test(name) && !but.includes(name));
function details(item) {
  const said = others(table.title, table.email).filter(({ name }) => String(item[name] ?? ""));
  return said.map((field) => element("span", { dir: "auto" }, `${field.label}: `, text(field, item[field.name])));
}
const names = new Map();
/** Return how a row of a table is called, in one line. */
export const labelOf = (to, item) => `${item[to.title] ?? ""}, ${item[to.email] ?? `#${item.id}`}`;
/** Return how the row of another table is called, when it is here. */
export function nameOf(to, id) {
  const path = `${to.path}${id}`;
  if (!names.has(path)) names.set(path, call(path).then((item) => labelOf(to, item), () => `#${id}`));
  return names.get(path);
}
/** Return what to show of a value: a text, or a node that gets it. */
export function text({ kind, to }, value) {
  if (value === null || value === undefined) return "";
  if (kind === "yesno") return value ? "Yes" : "No";
  if (kind === "date") return day(value);
  if (kind === "moment") return minute(value);
  if (kind !== "reference") return typeof value === "object" ? JSON.stringify(value) : String(value);
  const node = element("span", {}, `#${value}`);
  nameOf(to, value).then((name) => (node.textContent = name));
  return node;
}
/** Return in a person's words what is wrong with a field; the API's are a programmer's. */
export function inWords({ loc, type, msg }) {
  const { label, schema } = table.create.find(({ name }) => name === loc.at(-1)) ?? { label: "field", schema: {} };
  if (type === "conflict" && loc.at(-1) === table.email) return `Another ${table.one} has this address already.`;
  if (type === "missing" || type === "string_too_short") return `Please fill in the ${label.toLowerCase()}.`;
  if (type === "string_too_long") return `At most ${schema.maxLength} characters fit here.`;
  if (/control characters/.test(msg)) return "There are characters in it that cannot be seen. Please type it anew.";
  return msg.replace("not a valid email address:", "This is not an address.").replace(/^Value error, /, "");
}
