"""What the pages have in common: templates, one style, and a policy that lets nothing run and nothing in.

There is no script. Class and file names are strangers': every text is escaped, and the policy would stop what is not.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_STYLE = base64.b64encode(hashlib.sha256(_templates.get_template("page.css").render().encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; img-src 'self'; style-src 'sha256-{_STYLE}'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""To be sent along: pictures of this service, forms to it, the page's own style, and nothing else."""


def signed_points(share: float) -> str:
    """A share as points with its sign, a minus that screen readers read."""
    points = f"{100 * share:+.1f}"
    return "0.0" if points in {"+0.0", "-0.0"} else points.replace("-", "−")


_templates.filters["signed"] = signed_points


def render(template: str, **values: Any) -> str:
    """A page's HTML; `page` sends it as it must be sent."""
    return _templates.get_template(template).render(**values)


def page(html: str, *, status_code: int = 200) -> HTMLResponse:
    """Answer with a page."""
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(html, status_code=status_code, headers=headers)
