"""The one kind of error a user is meant to read, and the did-you-mean that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class BayespareError(Exception):
    """Bad input, said in one line: what is wrong, where (file, column, layer or key), what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class UnsupportedStructureError(BayespareError):
    """A layer or operation whose units cannot be removed exactly; the message names it."""


class NoCurvatureError(UnsupportedStructureError):
    """Parameters that are used in a way curvature does not follow; the message names one.

    Attributes:
        names: Of all of them.
    """

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


class NonFiniteLossError(BayespareError):
    """Training met a loss that is not finite; the message says where the last good state is."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, else the list of known words.

    Args:
        word: What the user wrote.
        known: The words that would have been right.
    """
    words = sorted(known)
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(words)})"
