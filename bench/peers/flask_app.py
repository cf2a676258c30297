"""Flask and SQLAlchemy, as in "SQLAlchemy in Flask" of Flask's documentation: a scoped session."""

import os
from datetime import UTC, datetime

from email_validator import EmailNotValidError, validate_email
from flask import Flask, abort, request
from sqlalchemy import BigInteger, DateTime, Integer, String, create_engine, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

# A sync worker has one thread, and that has one connection.
engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"),
    pool_size=1,
    max_overflow=0,
)
db_session = scoped_session(sessionmaker(engine))


class Base(DeclarativeBase):
    """The base of the tables."""


class User(Base):
    """The table."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # as SQLAlchemy documents it

    def to_dict(self) -> dict[str, object]:
        """Return a user of a response."""
        return {
            "id": self.id,
            "name": self.name,
            "email": self.email,
            "created_at": as_text(self.created_at),
            "updated_at": as_text(self.updated_at),
            "version": self.version,
        }


def as_text(time: datetime) -> str:
    """Return a time in ISO 8601; SQLite gives back what was UTC without its zone."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()


app = Flask(__name__)


@app.teardown_appcontext
def shutdown_session(_: BaseException | None) -> None:
    """Give the connection back."""
    db_session.remove()


def read_name(name: object) -> str:
    """Return a name that is valid."""
    if not isinstance(name, str) or not 1 <= len(name) <= 100:
        abort(422)
    return name


def read_email(email: object) -> str:
    """Return an address that is valid."""
    try:
        return validate_email(email, check_deliverability=False).normalized
    except (EmailNotValidError, TypeError):
        abort(422)


@app.post("/users/")
def create_user():
    """Add a user."""
    data = request.get_json()
    name, email = read_name(data.get("name")), read_email(data.get("email"))
    now = datetime.now(UTC)
    user = User(name=name, email=email, created_at=now, updated_at=now)
    db_session.add(user)
    try:
        db_session.commit()
    except IntegrityError:
        abort(409)
    return user.to_dict(), 201


@app.get("/users/")
def read_users():
    """List users."""
    cursor = request.args.get("cursor", default=0, type=int)
    limit = request.args.get("limit", default=50, type=int)
    if not 1 <= limit <= 200:
        abort(422)
    query = select(User).where(User.id > cursor).order_by(User.id).limit(limit + 1)
    for word in request.args.get("q", "").split():
        fields = (User.name, User.email)
        query = query.where(or_(*(field.icontains(word, autoescape=True) for field in fields)))
    users = db_session.scalars(query).all()
    following = str(users[limit - 1].id) if len(users) > limit else None
    return {"items": [user.to_dict() for user in users[:limit]], "next": following}


@app.get("/users/<int:user_id>")
def read_user(user_id: int):
    """Return a user."""
    user = db_session.get(User, user_id)
    return user.to_dict() if user else abort(404)


@app.patch("/users/<int:user_id>")
def update_user(user_id: int):
    """Change a user."""
    data = request.get_json()
    user = db_session.get(User, user_id) or abort(404)
    if request.headers.get("If-Match") not in (None, f'"{user.version}"'):
        abort(412)
    if "name" in data:
        user.name = read_name(data["name"])
    if "email" in data:
        user.email = read_email(data["email"])
    user.updated_at = datetime.now(UTC)
    try:
        db_session.commit()
    except IntegrityError:
        abort(409)
    except StaleDataError:
        abort(412)
    return user.to_dict()
