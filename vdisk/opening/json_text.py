"""JSON as QEMU reads it: strings may stand in single quotes, too.

In single quotes ``\'`` is a quote, and a double one needs no backslash.
"""

from __future__ import annotations

import json
import re
from typing import Any

_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_MARK = re.compile(r"""\\.|\"""", re.DOTALL)
_REQUOTED = {r"\'": "'", '"': r"\""}


def loads(text: str) -> Any:
    """The value; raises ValueError, or RecursionError where it is nested too deep."""
    return json.loads(_STRING.sub(_with_double_quotes, text))


def _with_double_quotes(string: re.Match[str]) -> str:
    text = string[0]
    if text[0] == '"':
        return text
    body = _MARK.sub(lambda mark: _REQUOTED.get(mark[0], mark[0]), text[1:-1])
    return f'"{body}"'
