"""The pages' icon; browsers ask for one."""

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<rect x="1" y="3" width="6" height="4" fill="#e5a04a"/>'
    '<rect x="1" y="9" width="14" height="4" fill="#1766b5"/></svg>'
)


@router.get("/icon.svg")
def icon() -> Response:
    """Two bars: before and after."""
    headers = {"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff"}
    return Response(_ICON, media_type="image/svg+xml", headers=headers)
