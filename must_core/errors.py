"""What can go wrong in an adaptation, by what the person who started it can do about it."""


class MustError(Exception):
    """Base of this library's errors. ``code`` is stable, ``param`` names the setting it is about."""

    code = "must_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param


class InvalidClasses(MustError):
    """Class names, prompts or templates that cannot make a classifier."""

    code = "invalid_classes"


class InvalidConfig(MustError):
    """Hyper-parameters that are out of range or do not go together, or with the model or the data."""

    code = "invalid_combination"


class FailedElsewhere(MustError):
    """Another process of the run cannot go on, and has said why."""

    code = "failed_elsewhere"


class UnknownModel(MustError):
    """A base model that open_clip does not know, or a folder that holds none."""

    code = "unknown_model"


class WeightsUnavailable(MustError):
    """The base model is known and its weights are not at hand."""

    code = "weights_unavailable"


class UnreadableImage(MustError):
    """A file that cannot be decoded, named in the message. Pickles by its message alone."""

    code = "image_corrupt"


class Diverged(MustError):
    """The loss is no longer a finite number; the last good checkpoint is kept."""

    code = "diverged"


class CorruptArtifact(MustError):
    """A bundle or checkpoint that is not what it was when it was written."""

    code = "artifact_corrupt"
