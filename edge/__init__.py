"""The edge of the app: which requests are admitted, and how they are answered.

The only door of the package. ``tests/test_auth.py``, ``test_hostile.py`` and ``test_contract.py``
have its tests:

- Without tokens, only this machine is served; with tokens, every path that isn't open needs one.
- What pages of other sites send is rejected. Each response has the headers of its path.
- A caller has a bounded number of requests under way, of bounded size, for a bounded time.
- A client gets to read why it was rejected, also while it is still sending.
- JSON, a query and a Host have one meaning, or the request is rejected.
- ``Route`` answers with rows that are not validated again, sets the ETag and answers 304.
"""

from edge.auth import get_callers, install
from edge.headers import WEB
from edge.limits import each, read_json
from edge.route import IfMatch, Route

__all__ = ["WEB", "IfMatch", "Route", "each", "get_callers", "install", "read_json"]
