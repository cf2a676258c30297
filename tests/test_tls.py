"""TLS to a database's server, and what is said of a certificate that nobody vouches for."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import pytest
from conftest import quick_on, required, serve
from databases import (
    _ask_mysql,
    _folder,
    _mysql_server,
    _new_admin,
    _postgresql_server,
    _secantusdb,
    free_port,
    redis_server,
)
from sqlalchemy import URL
from test_start import only_line, start_and_fail

SYSTEMS = "/etc/ssl/certs/ca-certificates.crt"  # those whom Debian trusts
UNKNOWN = "has a TLS certificate that is not for this host, has expired, or whose issuer is unknown"


@contextmanager
def postgresql(certificate: Path, key: Path) -> Iterator[URL]:
    """Yield the URL of a server that speaks TLS."""
    tls = f"-cssl=on -cssl_cert_file={certificate} -cssl_key_file={key}".split()
    with _postgresql_server(*tls) as (admin, _):
        yield admin.set(drivername="postgresql", query={"sslmode": "verify-full"})


@contextmanager
def mysql(certificate: Path, key: Path) -> Iterator[URL]:
    """Yield the URL of a server that speaks TLS only."""
    with _mysql_server(f"--ssl-cert={certificate}", f"--ssl-key={key}") as (admin, _):
        _ask_mysql(admin, "create database roster")
        _ask_mysql(admin, "set global require_secure_transport=on")
        yield admin.set(drivername="mysql", database="roster")


@contextmanager
def redis(certificate: Path, key: Path) -> Iterator[URL]:
    """Yield the URL of a server that speaks TLS at that port."""
    tls = [f"--tls-port {(port := free_port())}", "--tls-auth-clients no"]
    with redis_server(*tls, f"--tls-cert-file {certificate}", f"--tls-key-file {key}") as (url, _):
        yield url.set(drivername="rediss", port=port)


@contextmanager
def mongodb(certificate: Path, key: Path) -> Iterator[URL]:
    """Yield the URL of a server that speaks TLS only."""
    admin = _new_admin("mongodb")
    url = URL.create("mongodb", host=admin.host, port=admin.port, database="roster")
    url = url.set(query={"tls": "true", "tlsCAFile": str(certificate)})
    tls = [f"--tls-cert-file={certificate}", f"--tls-key-file={key}"]
    with TemporaryDirectory(prefix="roster-") as folder, _secantusdb(url, Path(folder), *tls):
        yield url.difference_update_query(["tlsCAFile"])


class Kind(NamedTuple):
    """A server, the option that names who vouches for it, and what is said without that."""

    server: Callable[[Path, Path], AbstractContextManager[URL]]
    option: str
    without: str


KINDS = {
    "postgresql": Kind(postgresql, "sslrootcert", "or sslmode=verify-full without sslrootcert"),
    "mysql": Kind(mysql, "ssl_ca", "without TLS"),
    "mongodb": Kind(mongodb, "tlsCAFile", UNKNOWN),
    "redis": Kind(redis, "ssl_ca_certs", UNKNOWN),
}


@pytest.mark.parametrize("name", quick_on(KINDS, "postgresql"))
def test_certificate_that_nobody_vouches_for_is_refused(name: str, tmp_path: Path) -> None:
    server, option, without = KINDS[name]
    account = {"postgresql": "postgres"}.get(name, name)
    with _folder(account, "") as folder:
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        make = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate}"
        make += " -subj /CN=roster -addext subjectAltName=IP:127.0.0.1"
        subprocess.run(make.split(), check=True, capture_output=True)
        if os.getuid() == 0:
            os.chown(key, folder.stat().st_uid, folder.stat().st_gid)
        with required(f"{name} with TLS"), server(certificate, key) as url:
            text = url.render_as_string(hide_password=False)
            add = f"{'&' if url.query else '?'}{option}="
            for rest, said in {
                "": without,
                f"{add}{SYSTEMS}": UNKNOWN,
                f"{add}/absent": f"{option}: no file of certificates (FileNotFoundError)",
                f"{add}{__file__}": f"{option}: no file of certificates (SSLError)",
            }.items():
                env = {"DATABASE_URL": text + rest, "HOME": str(tmp_path)}
                assert said in only_line(start_and_fail(tmp_path, env))
            with serve(f"{text}{add}{certificate}", tmp_path) as app:
                assert httpx.get(f"{app.url}/readyz").is_success
