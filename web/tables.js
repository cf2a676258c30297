// The API's tables, as openapi.json describes them: no field of any table is named here.

import { byId, call, day, element, minute, table, titleOf } from "./roster.js";

const api = await call("openapi.json");

/** Return a schema with what it refers to in its place. */
const full = (schema = {}) =>
  schema.$ref ? { ...full(schema.$ref.slice(2).split("/").reduce((node, key) => node[key], api)), ...schema } : schema;
const schemaOf = (part) => full(part?.content?.["application/json"]?.schema);
const words = (name) => name.replace(/([a-z])([A-Z])/g, "$1 $2").replace(/[_-]+/g, " ").toLowerCase();

/** Return the field that a schema describes; of a kind that the page does not know, it is only shown. */
function field(name, given, required) {
  const kinds = (given.anyOf ?? given.allOf ?? [given]).map(full);
  const some = kinds.filter(({ type }) => type !== "null");
  const decimal = some.length === 2 && some.every(({ type }) => /number|string/.test(type)); // an exact number is sent as text
  const schema = { ...some[0], ...(decimal && { type: "number", exact: true }), ...given };
  const formats = { email: "email", date: "date", "date-time": "moment" };
  const kind =
    some.length > 1 && !decimal ? "other"
    : schema["x-references"] || /_id$/.test(name) ? "reference"
    : schema.enum || "const" in schema ? "choice"
    : { boolean: "yesno", integer: "number", number: "number", string: formats[schema.format] ?? "text" }[schema.type] ?? "other";
  const label = schema.title ?? words(name);
  return {
    ...{ name, kind, required, schema, nullable: some.length < kinds.length, options: schema.enum ?? [schema.const] },
    ...{ label: kind === "reference" ? label.replace(/ id$/i, "") : label, default: schema.default },
    // The path of the table that it refers to; by the name of the field, unless the schema says it.
    path: schema["x-references"]?.replace(/^\/|\/$/g, "").concat("/"),
  };
}

const fieldsOf = (schema) =>
  Object.entries(schema.properties ?? {}).map(([name, given]) => field(name, full(given), Boolean(schema.required?.includes(name))));

/** Return the table at a path that has a list, create, change and delete; else undefined. */
function describe(path) {
  const { get, post } = api.paths[path];
  const base = path.replace(/\/$/, "");
  const one = Object.keys(api.paths).find((other) => other.startsWith(`${base}/{`) && /^[^{]*\{[^{]*\}$/.test(other) && api.paths[other].patch);
  const page = schemaOf(get?.responses[200]).properties;
  if (path.includes("{") || !page?.items || !page.next || !post || !one || !api.paths[one].delete) return undefined;
  const read = fieldsOf(full(full(page.items).items));
  const create = fieldsOf(schemaOf(post.requestBody));
  const parameters = Object.fromEntries(get.parameters?.map(({ name, schema }) => [name, full(schema)]) ?? []);
  const name = base.slice(1);
  const reference = post.requestBody?.content["application/json"].schema.$ref ?? name.replace(/s$/, "");
  const texts = create.filter(({ kind }) => kind === "text");
  return {
    ...{ name, path: path.slice(1), read, create, parameters },
    ...{ many: words(name), one: words(reference.split("/").at(-1).replace(/Create$/, "")) },
    change: fieldsOf(schemaOf(api.paths[one].patch.requestBody)),
    title: (texts.find((field) => /^(name|title)$/.test(field.name)) ?? texts[0])?.name,
    email: read.find((field) => create.some((other) => other.name === field.name && other.kind === "email"))?.name,
    sort: parameters.sort?.default,
    takes: (what) => Boolean(api.paths[`${base}/${what}`]),
  };
}

export const tables = Object.keys(api.paths).map(describe).filter(Boolean);
tables.sort((a, b) => (b.name === "users") - (a.name === "users"));
for (const { create, change, read } of tables)
  for (const field of [...create, ...change, ...read].filter(({ kind }) => kind === "reference")) {
    const stem = field.name.replace(/_id$/, "");
    field.to = tables.find(({ path, name }) => (field.path ? path === field.path : [stem, `${stem}s`, `${stem}es`].includes(name)));
    if (!field.to) field.kind = field.schema.type === "integer" ? "number" : "other";
  }

const users = tables.find(({ name }) => name === "users");
Object.assign(table, { ...users, ...table });
if (users) Object.assign(users, { one: table.one, many: table.many, title: table.title });

/** Make another table the one that this page shows. */
export function become(name) {
  const found = tables.find((other) => other.name === name);
  if (!found) return;
  Object.assign(table, { email: undefined, details, ...found });
  const sorts = table.parameters.sort?.enum ?? [];
  const title = sorts.find((sort) => sort === table.title);
  table.sort = title ?? table.sort ?? sorts[0] ?? "";
  const label = (sort) => table.read.find((field) => field.name === sort.replace("-", ""))?.label ?? sort;
  const named = { id: "Oldest first", "-id": "Newest first", [table.title]: "A to Z", [`-${table.title}`]: "Z to A" };
  byId("sort").replaceChildren(
    ...sorts.map((value) => element("option", { value }, named[value] ?? `${label(value)}, ${value[0] === "-" ? "descending" : "ascending"}`)),
  );
  byId("sort").hidden = !sorts.length;
  byId("text").hidden = !table.parameters.q;
  byId("text").placeholder = byId("text").ariaLabel = `Search ${table.many}`;
  byId("people").ariaLabel = table.many;
  document.title = `Roster: ${table.many}`;
  for (const button of document.querySelectorAll("[data-do=add]")) button.textContent = `Add ${table.one}`;
}

/** Return what a row says besides its title. */
function details(item) {
  const fields = table.read.filter(({ name }) => !/^(id|version|created_at|updated_at)$/.test(name) && name !== table.title && name !== table.email);
  const said = fields.filter(({ name }) => item[name] !== null && item[name] !== "");
  return said.map((field) => element("span", { dir: "auto" }, `${field.label}: `, text(field, item[field.name])));
}

const names = new Map();

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

/** Return how an item of a table is called where only a line is there for it. */
export const labelOf = (to, item) => [String(item[to.title] ?? `#${item.id}`), to.email ? item[to.email] : `#${item.id}`].join(", ");

/** Return in a person's words what is wrong with a field; the API's are a programmer's. */
export function inWords({ loc, type, msg }, { one, create } = table) {
  const field = create.find(({ name }) => name === loc.at(-1)) ?? { label: "This", schema: {} };
  const label = field.label.toLowerCase();
  if (type === "taken") return `Another ${one} has this ${label === "email" ? "address" : label} already.`;
  if (type === "missing" || type === "string_too_short") return `Please fill in the ${label}.`;
  if (type === "string_too_long") return `At most ${field.schema.maxLength} characters fit here.`;
  if (/control characters/.test(msg)) return "There are characters in it that cannot be seen. Please type it anew.";
  return msg.replace("not a valid email address:", "This is not an address.").replace(/^(Value error|Input), ?/, "");
}
