"""A clock that tests move by hand."""


class Clock:
    """Called, it tells ``now``, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now
