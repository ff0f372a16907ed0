"""Requests that a web page of somebody else's makes its reader's browser send."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import problem

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


class CrossSiteMiddleware:
    """Refuses, with 403 ``cross_site_request``, what changes something and comes from a page that is not ours.

    A form of any page may be sent anywhere without asking, also to a service on its reader's own machine, where nobody
    else gets in. Browsers say where a request comes from: ``Sec-Fetch-Site`` (W3C Fetch Metadata), or ``Origin`` in
    older ones (RFC 6454). Programs say neither, and are not meant.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _HARMLESS and is_cross_site(Headers(scope=scope)):
            refusal = problem(Request(scope), 403, "cross_site_request", "Another site's page made this request.")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser says that another site's page made the request."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site.strip().lower() not in {"same-origin", "none"}  # none: the person at the browser
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True  # no browser says that
