"""The errors of our domain. Each carries a stable ``code``; app/errors.py alone knows which HTTP status it means."""


class ServiceError(Exception):
    """Something that a user is told about.

    ``code`` is the stable machine-readable name (the contract), ``detail`` a sentence for people that never repeats
    the input, ``param`` the field it is about, ``retry_after_s`` a hint for errors that pass.
    """

    def __init__(self, code: str, detail: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s


class MalformedRequest(ServiceError):
    """The request cannot be read at all."""


class NotFound(ServiceError):
    """No such object, or not one of this caller's: the two look the same."""

    def __init__(self) -> None:
        super().__init__("not_found", "There is no such object.")


class Conflict(ServiceError):
    """The object's state does not allow this."""


class PayloadTooLarge(ServiceError):
    """More bytes or parts than are accepted."""


class UnsupportedMedia(ServiceError):
    """A kind of content that is not accepted."""


class InvalidInput(ServiceError):
    """Readable, but not acceptable."""


class Unavailable(ServiceError):
    """Not now; the same request may succeed later."""
