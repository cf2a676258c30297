# Roster in a container: docs/operate.md says how to run it, and what it needs.

# A tag with the patch release: a new one comes in by a change of this line, not by chance. For one
# that cannot change at all, add what `docker images --digests` says: python:...@sha256:...
FROM python:3.11.14-slim-bookworm AS build
COPY requirements.txt requirements-servers.txt ./
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -r requirements-servers.txt

FROM python:3.11.14-slim-bookworm
# A volume takes over the owner of the folder that it is mounted on.
RUN useradd --system --uid 10001 --no-create-home roster \
    && install -d -o roster -m 700 /data
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/roster
COPY *.py *.lua pyproject.toml ./
COPY commands commands
COPY edge edge
COPY engine engine
COPY migrations migrations
COPY web web
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 DATABASE_URL=sqlite:////data/roster.db
VOLUME /data
EXPOSE 8000
USER roster
# Not /readyz: restarting the app does not help a database that is unreachable.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
# FORWARDED_ALLOW_IPS, an environment variable of uvicorn's, names the proxy in front.
CMD ["uvicorn", "app:app", "--host", "0.0.0.0", "--no-access-log", "--timeout-graceful-shutdown", "10"]
