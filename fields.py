"""The rules of a field, once: names, addresses, ids, times.

They hold before any database is asked, so the five databases cannot disagree about a value.
"""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from pydantic import AfterValidator, StringConstraints, WithJsonSchema
from sqlmodel import Field

BULK_MAX = 1000
ID_MAX = 2**63 - 1  # BIGINT, the widest integer that all five databases store
NAME_MAX = 100
EMAIL_MAX = 254  # RFC 3696, erratum 1690
KEY_MAX = 255  # folding can lengthen a text: "ß" becomes "ss", "ﷺ" eighteen letters

SPECIAL_USE_DOMAIN_NAMES.clear()  # people of an internal tool may well be at corp.local

# Control characters, line separators, and U+FFFD: the mark of text that was not valid UTF-8.
REFUSED = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\ufffd"


def fold(text: str) -> str:
    """Return the key by which a text is compared and sorted: NFKC and casefold, at most 255 long.

    Case, full-width and decomposed variants of a text have one key (Unicode Standard, section
    3.13). It normalises twice because folding can undo the normal form.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)[:KEY_MAX]


def utc_now() -> datetime:
    """Return the time in UTC, aware, cut to the milliseconds that every database keeps."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def plain_text(text: str) -> str:
    """Return the text. Raises ValueError for control characters and invalid UTF-8."""
    if re.search(f"[{REFUSED}]", text):
        raise ValueError("must not contain control characters or invalid text")
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
    # RFC 1035, section 2.3.4. email-validator checks it after it has decoded the label, which
    # takes longer the longer it is: 1000 labels of 248 letters took 8 seconds.
    if any(len(label) > 63 for label in text.rpartition("@")[2].split(".")):
        raise ValueError("not a valid email address: a part of the domain is too long")
    try:
        email = validate_email(text, check_deliverability=False).normalized
    except EmailNotValidError as error:
        # What stands in parentheses can repeat the domain.
        reason = re.sub(r" \(.*\)", "", str(error), flags=re.DOTALL)
        raise ValueError(f"not a valid email address: {reason}") from None
    if len(fold(email)) > EMAIL_MAX:
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
    AfterValidator(plain_text),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": NAME_MAX,
            "pattern": rf"^[^{REFUSED}]*[^\s{REFUSED}][^{REFUSED}]*$",
        }
    ),
]
NamePrefix = Annotated[
    str,
    StringConstraints(max_length=NAME_MAX),
    AfterValidator(plain_text),
    WithJsonSchema({"type": "string", "maxLength": NAME_MAX, "pattern": f"^[^{REFUSED}]*$"}),
]
Email = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=EMAIL_MAX),
    AfterValidator(normal_email),
    WithJsonSchema({"type": "string", "format": "email", "maxLength": EMAIL_MAX}),
]
