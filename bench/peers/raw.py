"""No framework: fixed bytes for whatever arrives. It shows how much the load generator can do."""

import asyncio
import json
import sys

import uvloop

USER = {
    "id": 10_000,
    "name": "User 10000",
    "email": "user10000@example.com",
    "created_at": "2026-01-01T00:00:00.000000Z",
    "updated_at": "2026-01-01T00:00:00.000000Z",
    "version": 1,
}


def answer(status: str, body: object) -> bytes:
    """Return a whole answer."""
    text = json.dumps(body)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    return f"{head}\r\n\r\n{text}".encode()


ONE = answer("200 OK", USER)
PAGE = answer("200 OK", {"items": [USER] * 100, "next": "10000"})
CREATED = answer("201 Created", USER)


class Raw(asyncio.Protocol):
    """A connection. From wrk, a request comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer by the first letters."""
        answer = CREATED if data.startswith(b"POST") else PAGE if b"/?" in data[:16] else ONE
        self.transport.write(answer)


async def main(port: int) -> None:
    """Serve until the process is stopped."""
    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
