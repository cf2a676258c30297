"""Database URLs: taken apart and checked."""

from collections.abc import Sequence
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from urllib.parse import parse_qsl

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

# What drivers call the option for the certificates of those that vouch for a server.
AUTHORITIES = ("sslrootcert", "ssl_ca", "tlsCAFile", "ssl_ca_certs")
# Options of providers' URLs that mean nothing here, or something that has another name.
REPLACED = dict.fromkeys(("connect_timeout", "ssl-mode=DISABLED", "ssl-mode=PREFERRED"), "")
REPLACED |= {"channel_binding=prefer": "", "channel_binding=disable": ""}
REPLACED |= {"ssl-mode=REQUIRED": "ssl_check_hostname=false"}
# Those that drivers do not take. Other names may be a part of a password.
NOT_TAKEN = {"channel_binding", "gssencmode", "options", "pgbouncer", "sslaccept", "ssl-mode"}
HAVE_SEVERAL_HOSTS = ("postgresql", "postgres", "+asyncpg", "+sentinel")


class SettingsError(Exception):
    """A setting is wrong. The text is one line: which setting, what is wrong, never its value."""


def check_certificates(setting: str, value: str) -> None:
    """Raise SettingsError if a URL's certificates are none: drivers say "unreachable" then."""
    for option, file in parse_qsl(value.partition("?")[2]):
        if option in AUTHORITIES:
            try:
                SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(file)
            except (OSError, ValueError) as error:
                reason = f"no file of certificates ({type(error).__name__})"
                raise SettingsError(f"{setting}: {option}: {reason}.") from None


def parse_url(setting: str, value: str) -> URL:
    """Return the parts of the URL in a setting. Raises SettingsError."""
    check_certificates(setting, value)
    scheme, _, rest = value.partition("://")
    authority, _, path = rest.partition("/")
    user, at, places = authority.rpartition("@")
    if "," in places:  # libpq's //h1:1,h2:2/x, of which SQLAlchemy wants options
        path, _, query = path.partition("?")
        options = "&".join(f"host={place}" for place in places.split(","))
        value = f"{scheme}://{user}{at}/{path}?{options}&{query}"
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        example = "postgresql://user:password@host:5432/name"
        raise SettingsError(f"{setting}: not a URL; an example: {example}") from None
    for name, it in url.query.items():
        for option in REPLACED.keys() & {name, f"{name}={it}"}:
            url = url.difference_update_query([name]).update_query_string(REPLACED[option])
    kind, several, wrong = url.get_backend_name(), len(hosts(url)) > 1, ""
    if url.host and "@" in f"{url.host}{url.database}":
        wrong = "write an @ in the user name or the password as %40, a / as %2F."
    elif several and not url.drivername.endswith(HAVE_SEVERAL_HOSTS):
        wrong = "several hosts: only of PostgreSQL, MongoDB or Redis Sentinel."
    elif several and not all(host.rpartition(":")[2].isdecimal() for host in hosts(url)):
        wrong = "of several hosts, each needs its port: host1:5432,host2:5432"
    elif unknown := NOT_TAKEN & {*url.query}:
        wrong = f"the driver has no option {min(unknown)}, or not with this value."
    elif kind == "sqlite" and url.query:
        wrong = "SQLite takes no options after a ?"
    elif kind == "sqlite" and (url.host or url.database in (None, "", ":memory:")):
        wrong = "SQLite needs a file, for example sqlite:///roster.db"
    elif kind in ("postgresql", "postgres", "mysql", "mariadb") and not url.database:
        wrong = "it must name a database, as in postgresql://host:5432/name"
    if wrong:
        raise SettingsError(f"{setting}: {wrong}")
    return url


def hosts(url: URL) -> Sequence[str]:
    """Return the hosts of a URL, each with its port."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host or "its usual host"
    socket = url.normalized_query.get("unix_socket")
    return url.normalized_query.get("host", socket or [f"{host}:{url.port or 'its usual port'}"])
