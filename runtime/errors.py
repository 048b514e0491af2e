"""The errors a user can cause: one tree, each message says what was found, what is allowed and what to do.

EdgefuseError
├── RecipeError        an unknown key, a value outside its range
├── ManifestError      a line that cannot be used (names the file and the line)
├── MediaError         a picture or a sound that cannot be decoded
├── BundleError        a bundle that is missing, altered, incomplete or newer than this code
├── EngineError        a compile that failed, or an engine that does not fit what is asked of it
├── BackendError       a device or a runtime that fails while it runs
├── SensorError        a camera, microphone or text source that cannot be opened, or stopped
├── PeerError          processes that train together and do not find or lost each other
├── OptionError        an option of a call with a value that does not fit
├── UsageError         an expression of the command line that does not read as one (exit code 2)
├── WebError           a port or an address that the page cannot be served on
├── GateError          a model that lost more accuracy than its gate allows
└── MissingExtraError  a package of an optional extra is not installed

Each leaf also inherits the builtin that a caller would expect. The command line prints any of them in one line and
exits with 1, or 2 for wrong usage; everything else is a bug and keeps its traceback.
"""


class EdgefuseError(Exception):
    """Base of every error that the user's input can cause."""


class RecipeError(EdgefuseError, ValueError):
    """A recipe key or value that does not exist or does not fit."""


class ManifestError(EdgefuseError, ValueError):
    """A manifest line that cannot be used; the message starts with ``file:line``."""


class MediaError(EdgefuseError, ValueError):
    """A picture or sound file that is missing, empty, cut off or of an unknown format."""


class BundleError(EdgefuseError, ValueError):
    """A bundle that is missing, altered, incomplete, or written by a newer edgefuse."""


class EngineError(EdgefuseError, RuntimeError):
    """A TensorRT compile that failed, or an engine that does not fit the model or the machine."""


class BackendError(EdgefuseError, RuntimeError):
    """A device or a runtime that failed while it ran; open the backend again."""


class SensorError(EdgefuseError, OSError):
    """A camera, microphone or text source that cannot be opened, or that stopped giving."""


class PeerError(EdgefuseError, RuntimeError):
    """Processes of one training that do not find each other, or one of which ended."""


class OptionError(EdgefuseError, ValueError):
    """An option of a call, of the command line or in Python, with a value that does not fit."""


class UsageError(EdgefuseError, ValueError):
    """An expression of the command line that cannot be read; the command line exits with 2."""


class WebError(EdgefuseError, OSError):
    """A port or an address that the page of a running loop cannot be served on."""


class GateError(EdgefuseError, RuntimeError):
    """A compressed model that keeps less of the reference accuracy than its gate allows."""


class MissingExtraError(EdgefuseError, ImportError):
    """A package of an optional extra is needed and not installed; the message names the extra."""
