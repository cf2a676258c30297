"""What the scripts here share. Import it before anything of Roster's: it sets ``DATABASE_URL``.

Each script plays one scene twice: first in the idiom of FastAPI's and SQLModel's tutorials, then
with Roster. Both have a SQLite file in a folder that goes when the script ends.
"""

import atexit
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, create_engine

sys.path.insert(0, str(Path(__file__).parents[2]))  # Roster's modules
folder = tempfile.TemporaryDirectory(prefix="pitfall-")
atexit.register(folder.cleanup)
os.environ["DATABASE_URL"] = f"sqlite:///{folder.name}/roster.db"
for name in ("READ_DATABASE_URL", "API_TOKENS", "API_READ_TOKENS"):
    os.environ[name] = ""
logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())  # Roster's own lines

# The tutorials' app, engine and session.
TUTORIAL_URL = f"sqlite:///{folder.name}/tutorial.db"
tutorial = FastAPI()
engine = create_engine(TUTORIAL_URL, connect_args={"check_same_thread": False})


def get_session() -> Iterator[Session]:
    """Yield the session of a request."""
    with Session(engine) as session:
        yield session


TutorialSession = Annotated[Session, Depends(get_session)]


def store(*rows: SQLModel, engine: Engine = engine) -> None:
    """Make the tutorial's tables, and store rows in them."""
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(rows)
        session.commit()


@asynccontextmanager
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app that has started; what the app raises is answered as a 500."""
    local: Any = ("127.0.0.1", 1)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=local)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client
