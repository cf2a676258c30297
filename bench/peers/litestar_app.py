"""Litestar and advanced-alchemy: a service over an async repository, msgspec in and out."""

import os
from datetime import datetime
from typing import Annotated

from advanced_alchemy.extensions.litestar import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyPlugin,
    base,
    filters,
    providers,
    repository,
    service,
)
from email_validator import validate_email
from litestar import Controller, Litestar, get, patch, post
from litestar.exceptions import HTTPException
from litestar.params import Parameter
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy import String, or_
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

URL = os.environ["DATABASE_URL"]


class User(base.BigIntAuditBase):
    """The table; its base brings ``id``, ``created_at`` and ``updated_at``."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # as SQLAlchemy documents it


class UserCreate(Struct):
    """The body of a POST."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    email: Annotated[str, Meta(max_length=254)]

    def __post_init__(self) -> None:
        """Check the address; msgspec has no rule for it. EmailNotValidError is a ValueError."""
        self.email = validate_email(self.email, check_deliverability=False).normalized


class UserUpdate(Struct):
    """The body of a PATCH."""

    name: Annotated[str, Meta(min_length=1, max_length=100)] | UnsetType = UNSET
    email: Annotated[str, Meta(max_length=254)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Check the address."""
        if self.email:
            self.email = validate_email(self.email, check_deliverability=False).normalized


class UserRead(Struct):
    """A user in a response."""

    id: int
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int


class UserPage(Struct):
    """A page of users."""

    items: list[UserRead]
    next: str | None


class UserService(service.SQLAlchemyAsyncRepositoryService[User]):
    """The service of the table."""

    class Repo(repository.SQLAlchemyAsyncRepository[User]):
        """The repository of the table."""

        model_type = User

    repository_type = Repo


class UserController(Controller):
    """The API."""

    path = "/users"
    dependencies = providers.create_service_dependencies(UserService, "users")

    @post()
    async def create_user(self, users: UserService, data: UserCreate) -> UserRead:
        """Add a user."""
        user = await users.create(data)
        return users.to_schema(user, schema_type=UserRead)

    @get()
    async def read_users(
        self,
        users: UserService,
        cursor: int = 0,
        limit: Annotated[int, Parameter(ge=1, le=200)] = 50,
        q: str = "",
    ) -> UserPage:
        """List users."""
        wanted = [
            or_(*(field.icontains(word, autoescape=True) for field in (User.name, User.email)))
            for word in q.split()
        ]
        found = await users.list(
            User.id > cursor, *wanted, filters.OrderBy("id"), filters.LimitOffset(limit + 1, 0)
        )
        following = str(found[limit - 1].id) if len(found) > limit else None
        page = users.to_schema(found[:limit], schema_type=UserRead)
        return UserPage(items=page.items, next=following)

    @get("/{user_id:int}")
    async def read_user(self, users: UserService, user_id: int) -> UserRead:
        """Return a user."""
        return users.to_schema(await users.get(user_id), schema_type=UserRead)

    @patch("/{user_id:int}")
    async def update_user(
        self,
        users: UserService,
        user_id: int,
        data: UserUpdate,
        if_match: Annotated[str | None, Parameter(header="If-Match")] = None,
    ) -> UserRead:
        """Change a user."""
        user = await users.get(user_id)
        if if_match not in (None, f'"{user.version}"'):
            raise HTTPException(status_code=412)
        try:
            user = await users.update(data, item_id=user_id)
        except StaleDataError:
            raise HTTPException(status_code=412) from None
        return users.to_schema(user, schema_type=UserRead)


alchemy = SQLAlchemyPlugin(
    config=SQLAlchemyAsyncConfig(
        connection_string=URL.replace("postgresql:", "postgresql+asyncpg:").replace(
            "sqlite:", "sqlite+aiosqlite:"
        ),
        before_send_handler="autocommit",  # commits before the answer is sent
        session_config=AsyncSessionConfig(expire_on_commit=False),
        engine_config=EngineConfig(pool_size=15, max_overflow=0),
    )
)
app = Litestar(route_handlers=[UserController], plugins=[alchemy])
