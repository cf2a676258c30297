"""The rules of a field, once: names, addresses, ids, times.

They hold before any database is asked, so the five databases cannot disagree about a value.
"""

import re
import unicodedata
from datetime import UTC, datetime
from itertools import filterfalse
from typing import Annotated

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from pydantic import AfterValidator, StringConstraints, WithJsonSchema
from sqlmodel import Field

BULK_MAX = 1000
ID_MAX = 2**63 - 1  # BIGINT, the widest integer that all five databases store
NAME_MAX = 100
EMAIL_MAX = 254  # RFC 3696, erratum 1690
KEY_MAX = 255  # folding can lengthen a text: "ß" becomes "ss", "ﷺ" eighteen letters
Q_MAX = NAME_MAX + EMAIL_MAX + 10  # Name <address>
KEEP = "\0"  # in a key: this part stays as it is stored

SPECIAL_USE_DOMAIN_NAMES.clear()  # people of an internal tool may well be at corp.local

# Control characters, line separators, and U+FFFD: the mark of text that was not valid UTF-8.
REFUSED = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\ufffd"
# What cannot be seen: Unicode's Default_Ignorable_Code_Point, annotation marks, the empty Braille
# pattern. JOINERS are those that many names need.
JOINERS = r"\u200c\u200d\ufe0f"
INVISIBLE = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
MARKS = r"\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
# Where a script or an emoji needs them: after which characters, which of them.
NEEDED = {
    "[\\u0600-\\u0dff\\u0f00-\\u18af\\u1a20-\\u1cff\\ua800-\\uabff\\ufb50-\\ufdff\\ufe70-\\ufefc"
    "\U00010a00-\U00011fff]": r"[\u200c\u200d](?!\s|$)",  # Arabic, Indic and others
    "[\\u2190-\\u2bff\U0001f000-\U0001faff]\\ufe0f?": r"\u200d(?!\s|$)",  # an emoji of several
    "[#*0-9\\u00a9\\u00ae\\u1000-\\u109f\\u2000-\\u33ff\U0001f000-\U0001faff]": r"[\ufe0e\ufe0f]",
    "[\\u2e80-\\u9fff\\uf900-\\ufaff\U00020000-\U0003ffff]": "[\\ufe00-\\ufe0f"
    "\U000e0100-\U000e01ef]",  # Chinese
    r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]": r"[\u061c\u200e\u200f]",  # right to left
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1a20-\u1aaf]": r"\u200b",  # between Thai words
    r"[\u1800-\u18af]": r"[\u180b-\u180f]",  # Mongolian
    "\U0001f3f4": "[\U000e0020-\U000e007f]+",  # a flag
}
SEEN = rf"[^\s{REFUSED}{INVISIBLE}{JOINERS}{MARKS}]"
TEXT = "|".join([*map("".join, NEEDED.items()), f"[^{INVISIBLE}{JOINERS}]"])
NAME = re.compile(f"(?=.*{SEEN})(?:{TEXT})*")


def fold(text: str) -> str:
    """Return the key by which a text is compared and sorted: NFKC and casefold, at most 255 long.

    Case, full-width and decomposed variants of a text have one key (Unicode Standard, section
    3.13). It normalises twice because folding can undo the normal form.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)[:KEY_MAX]


def fold_email(email: str) -> str:
    """Return the key of an address; straße.de and strasse.de are two domains (IDNA 2008)."""
    local, at, domain = email.rpartition("@")
    return (fold(local) + at + re.sub("[^ßς]+", lambda part: fold(part[0]), domain))[:KEY_MAX]


# As people type letters that have no accent to leave out, and typographic punctuation.
TYPED = str.maketrans(
    dict(zip("łøđðıħŧŋə‘’ʻʼ‐‒–—−", "loddihtne" + 4 * "'" + 5 * "-", strict=True))  # noqa: RUF001 (meant)
    | {"æ": "ae", "œ": "oe", "þ": "th"}
)


def searchable(text: str) -> str:
    """Return a text as ``q`` is compared with it: folded, without marks and invisible characters.

    "Jürgen", "İbrahim" and "Łukasz" become "jurgen", "ibrahim" and "lukasz".
    """
    if text.isascii():
        return text.lower()
    letters = filterfalse(unicodedata.combining, unicodedata.normalize("NFKD", fold(text)))
    plain = re.sub(f"[{INVISIBLE}{JOINERS}]", "", "".join(letters).translate(TYPED))
    return unicodedata.normalize("NFKC", plain)


def fold_all(*texts: str | None) -> str:
    """Return the key in which ``q`` is looked for: a line for each text, KEEP for one not given."""
    return "\n".join(KEEP if text is None else searchable(text)[:KEY_MAX] for text in texts)


def words_of(q: str) -> tuple[str, ...]:
    """Return the words that a search asks for, without what surrounds an address, longest first."""
    words = (word.strip('<>,;"') or word for word in searchable(q).split())
    return tuple(sorted(dict.fromkeys(words), key=len, reverse=True))


def utc_now() -> datetime:
    """Return the time in UTC, aware, cut to the milliseconds that every database keeps."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def plain_text(text: str) -> str:
    """Return the text. Raises ValueError for control characters and invalid UTF-8."""
    if re.search(f"[{REFUSED}]", text):
        raise ValueError("must not contain control characters or invalid text")
    return text


def plain_name(text: str) -> str:
    """Return the text. Raises ValueError, too, for what is invisible where no script needs it."""
    if not plain_text(text).isascii() and not NAME.fullmatch(text):
        raise ValueError("must not contain, or be, invisible characters")
    return text


# Nearly every address looks like this. email-validator would return it as it is (a test compares
# the two), and takes 50 times as long.
PLAIN_EMAIL = re.compile(
    r"[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*@([a-z0-9]+(-[a-z0-9]+)*\.)+[a-z]{2,}", re.ASCII
)


def normal_email(text: str) -> str:
    """Return the address as email-validator normalises it. Raises ValueError.

    Only the syntax is checked: with a DNS look-up, the answer would depend on the network.
    """
    if len(text) <= 64 and PLAIN_EMAIL.fullmatch(text):
        return text
    if re.search(f"[{INVISIBLE}{JOINERS}]", text):
        raise ValueError("not a valid email address: it contains invisible characters")
    # RFC 1035, section 2.3.4. email-validator checks it after it has decoded the label, which
    # takes longer the longer it is: 1000 labels of 248 letters took 8 seconds.
    local, _, domain = text.rpartition("@")
    domain = unicodedata.normalize("NFKC", domain)  # it can become eighteen times as long
    if len(local) > 64 or len(domain) > 253 or max(map(len, domain.split("."))) > 63:
        raise ValueError("not a valid email address: a part of it is too long")
    try:
        email = validate_email(text, check_deliverability=False).normalized
    except EmailNotValidError as error:
        # What stands in parentheses can repeat the domain.
        reason = re.sub(r" \(.*\)", "", str(error), flags=re.DOTALL)
        raise ValueError(f"not a valid email address: {reason}") from None
    if len(fold_email(email)) > EMAIL_MAX:
        raise ValueError(f"not a valid email address: longer than {EMAIL_MAX} once folded")
    return email


UserId = Annotated[
    int,
    Field(ge=1, le=ID_MAX),
    # JavaScript reads numbers as floats: of those below 2**63, this is the last that it can tell.
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": ID_MAX - 1023}),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME_MAX),
    AfterValidator(plain_name),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": NAME_MAX,
            "pattern": f"^[^{REFUSED}{INVISIBLE}]*{SEEN}[^{REFUSED}{INVISIBLE}]*$",
        }
    ),
]
NamePrefix = Annotated[
    str,
    StringConstraints(max_length=NAME_MAX),
    AfterValidator(plain_text),
    WithJsonSchema({"type": "string", "maxLength": NAME_MAX, "pattern": f"^[^{REFUSED}]*$"}),
]
Words = Annotated[
    str,
    StringConstraints(max_length=Q_MAX),
    AfterValidator(plain_text),
    WithJsonSchema({"type": "string", "maxLength": Q_MAX, "pattern": f"^[^{REFUSED}]*$"}),
]
Email = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=EMAIL_MAX),
    AfterValidator(normal_email),
    WithJsonSchema({"type": "string", "format": "email", "maxLength": EMAIL_MAX}),
]
