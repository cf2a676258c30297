// What the API finds wrong with a field, in words for people.

const WORDS = {
  "name string_too_short": "Please write a name.",
  "name string_too_long": "A name has at most 100 characters.",
  "name value_error": "There are characters in it that cannot be seen. Please type it anew.",
  "email string_too_long": "An address has at most 254 characters.",
  "email taken": "Somebody has this address already.",
};

/** Return in a person's words what is wrong with a field; the API's are a programmer's. */
export function inWords({ loc, type, msg }) {
  return WORDS[`${loc.at(-1)} ${type}`] ?? msg.replace("not a valid email address:", "This is not an address.");
}
