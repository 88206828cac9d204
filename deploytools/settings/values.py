"""What a single value of fabric.yaml may be: each type says in words what is accepted, and refuses the rest.

Every one is strict: "5" is no integer, 5 is no text, `yes` is no number. What reaches a web host is held
to characters that mean the same to a shell, to lighttpd, to Lua, to systemd and to sudo.
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
import shlex
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    HttpUrl,
    Strict,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

DAY = 24 * 3600.0
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?")
_URL = TypeAdapter(HttpUrl)


def should_be(meaning: str, *, secret: bool = False) -> WrapValidator:
    """Give every refusal of a type one wording. Where the value may be `secret`, no message repeats it."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValueError as error:
            about = {"meaning": meaning, "secret": secret}
            raise PydanticCustomError("unfit", "should be {meaning}", about) from error

    return WrapValidator(check)


def _seconds(value: object) -> object:
    """`5s`, `2m`, `1h30m`, `500ms` or a number of seconds -> seconds; what is neither is left as it is."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(_NUMBER, value):
        return float(value)
    match = _DURATION.fullmatch(value)
    if match is None or not value:
        raise ValueError("no duration")
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _lock_timeout(value: object) -> str:
    """A duration as PostgreSQL spells it; its smallest unit is a millisecond."""
    milliseconds = max(1, round(_DURATION_TYPE.validate_python(value) * 1000))
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def _host_name(value: str) -> str:
    if ":" in value:
        ipaddress.IPv6Address(value)
    return value


def _normalised(path: str) -> str:
    """Refuse `..`, `.`, `//` and a trailing slash, in what is otherwise made of allowed characters."""
    if posixpath.normpath(path) != path or path in (".", "..") or path.startswith("../"):
        raise ValueError("not normalised")
    return path


def _inside_release(path: str) -> str:
    if "{release}" in path.removeprefix("{release}"):
        raise ValueError("{release} comes first")
    _normalised(path.replace("{release}", "/release"))
    return path


def _local(path: object) -> object:
    """A path on the laptop, as text; absolute ones, relative ones and those below ~ all are good."""
    if isinstance(path, str):
        if not path or not path.isprintable():
            raise ValueError("no path")
        return Path(path)
    return path


def _url(value: str) -> str:
    """As typed, but for a trailing slash where there is no path."""
    url = _URL.validate_python(value)
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("only scheme, host, port and path")
    return str(url)


def _command_line(value: str) -> str:
    if not shlex.split(value) or not value.isprintable():
        raise ValueError("no command")
    return value


def _no_control_characters(value: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("control characters")
    return value


Application = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[a-z][a-z0-9-]{0,30}$"),
    should_be("a name of at most 31 small letters, digits and dashes that begins with a letter"),
]
HostName = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$|^[0-9A-Fa-f:.]+$", max_length=253),
    AfterValidator(_host_name),
    should_be("a host name, an IP address or an alias of ssh_config"),
]
Login = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}$"),
    should_be("a user name"),
]
Account = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9._-]{0,31}$"),
    should_be("a user name"),
]
Port = Annotated[int, Strict(), Field(ge=1, le=65535), should_be("an integer from 1 to 65535")]
Releases = Annotated[int, Strict(), Field(ge=1, le=1000), should_be("an integer from 1 to 1000")]
Parallel = Annotated[int, Strict(), Field(ge=1, le=1000), should_be("an integer from 1 to 1000")]
Status = Annotated[int, Strict(), Field(ge=200, le=499), should_be("an HTTP status from 200 to 499")]
ExitCode = Annotated[int, Strict(), Field(ge=0, le=255), should_be("an exit code from 0 to 255")]
Flag = Annotated[bool, Strict(), should_be("true or false")]
Duration = Annotated[
    float,
    Strict(),
    Field(gt=0, le=DAY, allow_inf_nan=False),
    BeforeValidator(_seconds),
    should_be("a duration such as 30, 5s, 2m or 1h30m, more than 0 and at most a day"),
]
_DURATION_TYPE: TypeAdapter[float] = TypeAdapter(Duration)
LockTimeout = Annotated[
    str,
    BeforeValidator(_lock_timeout),
    should_be("a duration such as 30, 5s, 2m or 500ms, more than 0 and at most a day"),
]
DurationOrZero = Annotated[
    float,
    Strict(),
    Field(ge=0, le=DAY, allow_inf_nan=False),
    BeforeValidator(_seconds),
    should_be("a duration such as 0, 5s, 2m or 1h30m, at most a day"),
]
HostPath = Annotated[
    str,
    Strict(),
    Field(pattern=r"^(/[\w.+@~-]([\w .+@~-]*[\w.+@~-])?)+$"),
    AfterValidator(_normalised),
    should_be(
        "an absolute path without '..', '//' or a slash at the end, of letters, digits, spaces, . _ - + @ ~"
    ),
]
ReleasePath = Annotated[
    str,
    Strict(),
    Field(pattern=r"^(\{release\})?(/[\w.+@~-]([\w .+@~-]*[\w.+@~-])?)*$", min_length=1),
    AfterValidator(_inside_release),
    should_be("an absolute path, or {release} with a path below it, without '..' or a slash at the end"),
]
SharedPath = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[\w.+@~][\w.+@~-]*(/[\w.+@~-]+)*$"),
    AfterValidator(_normalised),
    should_be("a relative path that stays inside the release, without '..' or a slash at the end"),
]
LocalPath = Annotated[
    Path,
    BeforeValidator(_local),
    should_be("a path on this computer, absolute or relative to the directory of fabric.yaml"),
]
Ref = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[\w./@][\w./@{}~^+-]*$", max_length=250),
    should_be("a branch, tag or commit of git"),
]
ExcludePattern = Annotated[
    str,
    Strict(),
    Field(min_length=1),
    AfterValidator(_no_control_characters),
    should_be("a pattern of file names such as tests/*"),
]
UrlPath = Annotated[
    str,
    Strict(),
    Field(pattern=r"^/[A-Za-z0-9._~+,:@/-]*$"),
    should_be("a URL path that begins with /, of letters, digits and . _ ~ + , : @ / -"),
]
UrlPathQuery = Annotated[
    str,
    Strict(),
    Field(pattern=r"^/[A-Za-z0-9._~!$&()*+,;=:@%/?-]*$"),
    should_be("a URL path that begins with /"),
]
Url = Annotated[
    str,
    Strict(),
    Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~!$&()*+,;=:@%/-]*)?$"),
    AfterValidator(_url),
    should_be("an http or https URL without user, query or fragment"),
]
HostHeader = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(:[0-9]{1,5})?$", max_length=259),
    should_be("a host name as browsers send it"),
]
Listener = Annotated[
    str,
    Strict(),
    Field(pattern=r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$|^/[\w./+@~-]+$"),
    should_be("an address as lighttpd listens on it, such as 0.0.0.0:8443, [::]:8443 or /run/lighttpd.sock"),
]
PageText = Annotated[
    str,
    Strict(),
    Field(min_length=1),
    AfterValidator(_no_control_characters),
    should_be("text within one line of the page"),
]
Color = Annotated[
    str,
    Strict(),
    Field(pattern=r"^#[0-9A-Fa-f]{6}$"),
    should_be("a colour such as '#0b57d0', in quotes, since # begins a comment"),
]
CommandLine = Annotated[
    str,
    Strict(),
    AfterValidator(_command_line),
    should_be("a command on one line with balanced quotes", secret=True),
]
Script = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[^\x00]*[^\x00\s][^\x00]*$"),
    should_be("a shell command", secret=True),
]
EnvName = Annotated[
    str,
    Strict(),
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
    should_be("the name of an environment variable"),
]
EnvValue = Annotated[
    str,
    Strict(),
    AfterValidator(_no_control_characters),
    should_be("text on one line", secret=True),
]


def absolute(path: Path, root: Path, home: str | None) -> Path:
    """Given a path of the laptop as fabric.yaml has it, return it without reading the disk."""
    if path.parts[:1] == ("~",) and home:
        return Path(home, *path.parts[1:])
    return Path(os.path.normpath(root / path))
