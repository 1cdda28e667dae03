"""Cameras and times told by paths: patterns such as `{camera}/{time:%Y%m%d_%H%M%S}*`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tiprctl.errors import UsageError

Fact = Literal["camera", "time"]

_EXAMPLES = {"camera": "{camera}/*", "time": "*_{time:%Y%m%d_%H%M%S}*"}
_TOKEN = re.compile(r"\{(?P<name>\w*)(?::(?P<format>[^{}]*))?\}|(?P<wild>[*?])|(?P<text>[^{}*?]+)")
_WILD = {"*": "[^/]*?", "?": "[^/]"}
_DIRECTIVES = {
    "Y": r"\d{4}",
    "y": r"\d{2}",
    "m": r"\d{2}",
    "d": r"\d{2}",
    "j": r"\d{3}",
    "H": r"\d{2}",
    "M": r"\d{2}",
    "S": r"\d{2}",
    "f": r"\d{1,6}",
    "s": r"\d{9,10}",
}
"""How the parts of a time are written, by their names in `strftime`; `%s` are seconds since 1970."""
_DAYS = ({"Y", "m", "d"}, {"y", "m", "d"}, {"Y", "j"}, {"y", "j"}, {"s"})


@dataclass(frozen=True)
class PathPattern:
    """What a path tells of its picture.

    A pattern is compared with the end of a path, folder by folder. `{camera}` stands for the camera's name,
    `{time:FORMAT}` for a time or a part of it (as `strftime` writes it; several are read as one), `*` for anything and
    `?` for one character; none of them reaches beyond its folder. All else is meant as it is written.
    """

    text: str
    fact: Fact
    regex: re.Pattern[str]
    time_format: str

    @classmethod
    def parse(cls, text: str, fact: Fact) -> PathPattern:
        """The pattern that a user wrote to tell `fact`; it may hold the other fact, too.

        Raises:
            UsageError: it is no such pattern; says where it goes wrong.
        """
        parts, formats, end = [], [], 0
        for token in _TOKEN.finditer(text):
            if token.start() != end:
                break
            end = token.end()
            if token["text"]:
                parts.append(re.escape(token["text"]))
            elif token["wild"]:
                parts.append(_WILD[token["wild"]])
            elif token["name"] == "camera" and not token["format"]:
                parts.append("(?P=camera)" if "(?P<camera>[^/]+?)" in parts else "(?P<camera>[^/]+?)")
            elif token["name"] == "time" and token["format"]:
                parts.append(f"(?P<time{len(formats)}>{_time_regex(token['format'], text)})")
                formats.append(token["format"])
            else:
                raise _misspelt(text, fact, f"{token[0]} is neither {{camera}} nor {{time:FORMAT}}")
        if end != len(text) or not text:
            raise _misspelt(text, fact, f"it cannot be read from {text[end:]!r} on" if text else "it is empty")
        if "**" in text:
            raise _misspelt(text, fact, "** is not known; a * stays within a folder: write one for each")
        _check_told(text, fact, parts, formats)
        return cls(text, fact, re.compile(f"(?:^|/){''.join(parts)}$"), " ".join(formats))

    def read(self, path: str) -> str | datetime | None:
        """The fact that a path tells; None where it does not match, or tells a day that never was."""
        found = self.regex.search(path)
        if found is None:
            return None
        if self.fact == "camera":
            return found["camera"]
        texts = [value for name, value in found.groupdict().items() if name.startswith("time")]
        return _time(" ".join(texts), self.time_format)


def _time_regex(form: str, pattern: str) -> str:
    """What a format matches."""

    def directive(found: re.Match[str]) -> str:
        if found[1] not in _DIRECTIVES:
            known = ", ".join(f"%{name}" for name in _DIRECTIVES)
            raise _misspelt(pattern, "time", f"{found[0]} in {form!r} is none of {known}")
        return _DIRECTIVES[found[1]]

    # re.escape leaves the % and the letters as they are.
    return re.sub(r"%(.?)", directive, re.escape(form))


def _time(text: str, form: str) -> datetime | None:
    try:
        if form == "%s":
            return datetime.fromtimestamp(int(text))
        return datetime.strptime(text, form)
    except (ValueError, OverflowError, OSError):
        return None


def _check_told(text: str, fact: Fact, parts: list[str], formats: list[str]) -> None:
    if fact == "camera" and "(?P<camera>[^/]+?)" not in parts:
        raise _misspelt(text, fact, "it has no {camera}")
    if fact == "time" and not formats:
        raise _misspelt(text, fact, "it has no {time:FORMAT}")
    directives = re.findall(r"%(.)", "".join(formats))
    if formats and not any(day <= set(directives) for day in _DAYS):
        raise _misspelt(text, fact, "its time has no day: that takes %Y%m%d, %y%m%d, %Y%j or %s")
    if len(set(directives)) < len(directives) or ("s" in directives and len(directives) > 1):
        raise _misspelt(text, fact, "it tells a part of the time twice")


def _misspelt(text: str, fact: Fact, why: str) -> UsageError:
    return UsageError(
        f"The pattern {text!r} cannot be used: {why}",
        where=f"--{fact}-from",
        remedy=f"Write it as {_EXAMPLES[fact]!r}: {{camera}}, {{time:FORMAT}}, * and ? stand for parts of a path.",
    )
