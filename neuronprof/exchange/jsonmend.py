"""JSON as profilers write it where it is not quite JSON, but clear what is meant.

Traces of PyTorch have backslashes of Windows paths that escape nothing (kineto issue 617), quotes inside names, which are file names of
generated code (kineto pull request 1459), inf, nan and N/A for numbers (kineto issue 105), values that are left out and commas too many.
"""

import json
import re
from collections.abc import Callable
from typing import Any

Scan = Callable[[str, int], tuple[Any, int]]

_MOST_ENDS = 100  # places at which a value is tried to end
_ENDS = {
    "{": re.compile(r"\}(?=\s*[,\]])"),
    "[": re.compile(r"\](?=\s*[,\]}])"),
    '"': re.compile(r'"(?=\s*[:,\]}])'),
}
_WORD = re.compile(r"[^\s,\[\]{}\":]+(?=\s*[,\]}])")
# A name ends where the next field of an event begins, or the object that it stands in ends.
_NAME = re.compile(
    r'("name":\s*)"(.*?)"(?=\s*(?:,\s*"(?:ph|cat|pid|tid|ts|dur|args|id|bp|s)"\s*:|\}\s*(?:[,\]}]|\Z)))', re.DOTALL
)
_VALID = re.compile(r'(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_TOKEN = re.compile(
    r'"(?P<string>(?:[^"\\]|\\.)*)"|(?P<comma>,(?=\s*[}\]]))|(?P<missing>:(?=\s*[,}\]]))|(?P<word>-?\b(?:nan|inf(?:inity)?|N/A)\b)',
    re.DOTALL | re.IGNORECASE,
)


def mended(text: str, at: int, scan: Scan) -> tuple[Any, int] | None:
    """The value that begins at a place of the text, and where it ends; None if it is not clear what is meant.

    Args:
        text: holds what follows the value, or the value is not found.
        at: the value's first character.
        scan: reads JSON.
    """
    first = text[at : at + 1]
    forms = (str, _text) if first == '"' else (str, _names, _tokens)  # from as it is written to the most changed
    ends = _ENDS.get(first, _WORD).finditer(text, at + (first == '"'))
    for end, _ in zip(ends, range(_MOST_ENDS), strict=False):
        written = text[at : end.end()]
        for form in forms:
            try:
                written = form(written)
                value, length = scan(written, 0)
            except (StopIteration, ValueError, RecursionError):
                continue
            if length == len(written):
                return value, end.end()
    return None


def _text(written: str) -> str:
    return _string(written[1:-1])


def _names(written: str) -> str:
    return _NAME.sub(lambda name: name[1] + _string(name[2]), written)


def _tokens(written: str) -> str:
    return _TOKEN.sub(_token, written)


def _token(token: re.Match[str]) -> str:
    if token["string"] is not None:
        return _string(token["string"])
    if token["comma"]:
        return ""
    return ": null" if token["missing"] else "null"


def _string(written: str) -> str:
    """A string of JSON; where an escape is none, or a quote has none, backslashes mean themselves."""
    if _VALID.fullmatch(written):
        return f'"{written}"'
    return json.dumps(re.sub(r'\\(["\\])', r"\1", written))
