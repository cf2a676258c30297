"""Django Ninja on Django's ORM: sync views, persistent connections, no middleware."""

import os
from datetime import datetime
from typing import Annotated
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from pydantic import EmailStr, StringConstraints

url = urlsplit(os.environ["DATABASE_URL"])
if url.scheme == "sqlite":
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": url.path.removeprefix("/"),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 5,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
        },
    }
else:
    database = {
        "ENGINE": f"django.db.backends.{url.scheme}",
        "NAME": url.path.removeprefix("/"),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname,
        "PORT": url.port,
    }
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {**database, "CONN_MAX_AGE": None}},
    ROOT_URLCONF=__name__,
    SECRET_KEY="nothing here is signed",  # noqa: S106  # there are no sessions, no cookies
    USE_TZ=True,
)
django.setup()

# Django wants to be set up before a model is made.
from django.core.wsgi import get_wsgi_application  # noqa: E402 (as above)
from django.db import IntegrityError, models, transaction  # noqa: E402 (as above)
from django.shortcuts import get_object_or_404  # noqa: E402 (as above)
from django.urls import path  # noqa: E402 (as above)
from ninja import Header, NinjaAPI, Query, Schema  # noqa: E402 (as above)
from ninja.errors import HttpError  # noqa: E402 (as above)


class User(models.Model):
    """The table."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=100)
    email = models.EmailField(max_length=254, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)
    version = models.IntegerField(default=1)

    class Meta:
        """Where it is."""

        app_label = "bench"
        db_table = "users"


Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Email = Annotated[EmailStr, StringConstraints(max_length=254)]


class UserCreate(Schema):
    """The body of a POST."""

    name: Name
    email: Email


class UserUpdate(Schema):
    """The body of a PATCH."""

    name: Name | None = None
    email: Email | None = None


class UserRead(Schema):
    """A user in a response."""

    id: int
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int


class UserPage(Schema):
    """A page of users."""

    items: list[UserRead]
    next: str | None


api = NinjaAPI()


@api.post("/users/", response={201: UserRead})
def create_user(request, data: UserCreate):
    """Add a user."""
    try:
        return 201, User.objects.create(**data.dict())
    except IntegrityError:
        raise HttpError(409, "Email taken") from None


@api.get("/users/", response=UserPage)
def read_users(
    request, cursor: int = 0, limit: Annotated[int, Query(ge=1, le=200)] = 50, q: str = ""
):
    """List users."""
    found = User.objects.filter(id__gt=cursor).order_by("id")
    for word in q.split():
        found = found.filter(models.Q(name__icontains=word) | models.Q(email__icontains=word))
    users = list(found[: limit + 1])
    following = str(users[limit - 1].id) if len(users) > limit else None
    return {"items": users[:limit], "next": following}


@api.get("/users/{user_id}", response=UserRead)
def read_user(request, user_id: int):
    """Return a user."""
    return get_object_or_404(User, id=user_id)


@api.patch("/users/{user_id}", response=UserRead)
def update_user(
    request,
    user_id: int,
    data: UserUpdate,
    if_match: Annotated[str | None, Header(alias="If-Match")] = None,
):
    """Change a user."""
    try:
        with transaction.atomic():
            user = get_object_or_404(User.objects.select_for_update(), id=user_id)
            if if_match not in (None, f'"{user.version}"'):
                raise HttpError(412, "The user has changed")
            for field, value in data.dict(exclude_unset=True).items():
                setattr(user, field, value)
            user.version += 1
            user.save()
    except IntegrityError:
        raise HttpError(409, "Email taken") from None
    return user


urlpatterns = [path("", api.urls)]
app = get_wsgi_application()
