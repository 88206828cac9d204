"""lighttpd's own word on its configuration: what `lighttpd -p` prints, as blocks of settings.

lighttpd merges every block whose conditions a request meets, in the order of the file; a later block
replaces a setting of an earlier one whole. So what counts for a request is the last block that it meets.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Union
from urllib.parse import urlsplit

from hostlib.program import Config, Failure

PATIENCE = 20.0  # seconds; include_shell runs programs
# What lighttpd has where the configuration is silent (configfile.c, base.h).
DEFAULTS = {"server.stat-cache-engine": "simple", "server.max-worker": 0}

# A string, a number, or an array: with keys a mapping, without a list.
Value = Union[str, int, "list[Value]", "dict[str, Value]"]


@dataclass(frozen=True)
class Condition:
    """`$HTTP["host"] == "www.example.com"` is Condition("host", "==", "www.example.com").

    `negated` is what an `else` adds: the condition before it must not hold.
    """

    about: str
    operator: str
    value: str
    negated: bool = False

    def holds(self, facts: Mapping[str, str]) -> bool | None:
        """Whether it holds for a request of which `facts` are known; None where they don't tell."""
        if self.about not in facts:
            return None
        met = self._compare(facts[self.about])
        return None if met is None else met is not self.negated

    def _compare(self, fact: str) -> bool | None:
        value = self.value
        if self.about == "remoteip" and "/" in value:
            return ipaddress.ip_address(fact) in ipaddress.ip_network(value, strict=False)
        if self.about == "socket":
            same = _is_listener(value, fact)
            return None if same is None else {"==": same, "!=": not same}.get(self.operator)
        try:
            return {
                "==": lambda: fact == value,
                "!=": lambda: fact != value,
                "=^": lambda: fact.startswith(value),
                "=$": lambda: fact.endswith(value),
                "=~": lambda: re.search(value, fact) is not None,
                "!~": lambda: re.search(value, fact) is None,
            }[self.operator]()
        except (re.error, KeyError):  # PCRE knows more than Python does
            return None

    def __str__(self) -> str:
        area = {"socket": "SERVER"}.get(self.about, "HTTP")
        if self.about.startswith("header "):
            area = "REQUEST_HEADER"
        about = self.about.rpartition(" ")[2]
        return f'{"not " if self.negated else ""}${area}["{about}"] {self.operator} "{self.value}"'


@dataclass(frozen=True)
class Block:
    """Settings for the requests that meet all of `conditions`; the first block has none."""

    conditions: tuple[Condition, ...] = ()
    settings: dict[str, Value] = field(default_factory=dict)

    def holds(self, facts: Mapping[str, str]) -> bool | None:
        """Whether a request meets it of which `facts` are known; None where they don't tell."""
        found = [condition.holds(facts) for condition in self.conditions]
        return False if False in found else None if None in found else True

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions)) or "the configuration as a whole"


class Configuration:
    """A configuration by its blocks, in the order of the file."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)

    def server(self, key: str) -> Any:
        """A setting of the whole server, or lighttpd's default."""
        return self.blocks[0].settings.get(key, DEFAULTS.get(key))

    def effective(self, key: str, facts: Mapping[str, str]) -> Any:
        """What counts for a request with these facts; a condition about anything else isn't met."""
        met = [block for block in self.blocks if block.holds(facts) and key in block.settings]
        return met[-1].settings[key] if met else DEFAULTS.get(key)

    def possible(self, key: str, facts: Mapping[str, str]) -> list[Block]:
        """The blocks whose setting of `key` counts for some request with these facts."""
        setting = [block for block in self.blocks if key in block.settings]
        found = [block for block in setting if block.holds(facts) is not False]
        certain = [index for index, block in enumerate(found) if block.holds(facts)]
        return found[certain[-1] if certain else 0 :]

    def inside(self, block: Block, key: str) -> Any:
        """What `block`, or a block around it, says; None where they leave it to the server as a whole."""
        around = [
            other.settings[key]
            for other in self.blocks[1:]
            if other.conditions == block.conditions[: len(other.conditions)] and key in other.settings
        ]
        return around[-1] if around else None


def _is_listener(value: str, fact: str) -> bool | None:
    """Whether a condition's ":443", "0.0.0.0:443", "[::]:443" or path means the listener `fact`.

    By the port alone where that is all that is known of it. None where only lighttpd can tell.
    """
    (address, _, port), (known, _, number) = value.rpartition(":"), fact.rpartition(":")
    if port != number:
        return False
    if not known:
        return True
    anything = "0.0.0.0"  # noqa: S104
    try:
        meant = ipaddress.ip_address(address.strip("[]") or anything)
        return meant == ipaddress.ip_address(known.strip("[]"))
    except ValueError:  # a name, say
        return None


def own_request(config: Config) -> Mapping[str, str]:
    """What is known of our own requests to the site."""
    url = urlsplit(config.url)
    return {
        "host": config.host_header or url.hostname or "",
        "scheme": url.scheme,
        "socket": str(url.port or (443 if url.scheme == "https" else 80)),
        "remoteip": "127.0.0.1",
        "url": "/",
        "querystring": "",
        "requestmethod": "GET",
    }


def backends(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The label ("" without one) and the options of each host of a `fastcgi.server`."""
    for hosts in value.values() if isinstance(value, dict) else ():
        if isinstance(hosts, dict):
            named: Iterable[tuple[str, Any]] = hosts.items()
        else:
            named = (("", host) for host in (hosts if isinstance(hosts, list) else ()))
        yield from ((label, host) for label, host in named if isinstance(host, dict))


def program() -> str | None:
    """Where lighttpd is. Debian's deploy users don't have the sbin directories on their PATH."""
    return shutil.which("lighttpd", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def version(lighttpd: str) -> str:
    """For instance "1.4.69". Raises Failure where it doesn't tell."""
    said = _run([lighttpd, "-v"])
    found = re.search(r"lighttpd/(\d+\.\d+\.\d+)", said.stdout)
    if found is None:
        raise Failure(f"{lighttpd} -v doesn't tell its version: {_words(said)}", next="reinstall lighttpd")
    return found[1]


def refusal(lighttpd: str, configuration: Path) -> str | None:
    """Why `lighttpd -tt` refuses the configuration, in its words; None where it takes it."""
    tested = _run([lighttpd, "-tt", "-f", str(configuration)])
    return None if tested.returncode == 0 else _words(tested)


def missing_module(lighttpd: str, modules: Iterable[str]) -> str | None:
    """The first of `modules` that can't be loaded here, whatever the configuration; None where all can."""
    for module in modules:
        text = f'server.modules = ("{module}")\nserver.document-root = "/"\n'
        if _run([lighttpd, "-tt", "-f", "-"], text).returncode != 0:
            return module
    return None


def read(lighttpd: str, configuration: Path) -> Configuration:
    """The configuration as lighttpd understands it. Raises Failure where it doesn't print it."""
    printed = _run([lighttpd, "-p", "-f", str(configuration)])
    if printed.returncode != 0:
        raise Failure(
            f"lighttpd can't read {configuration}: {_words(printed)}", next=f"lighttpd -p -f {configuration}"
        )
    return Configuration(list(parse(printed.stdout)))


def _run(argv: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, input=text, capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:  # a program of include_shell, as a rule
        command = " ".join(argv)
        raise Failure(f"{command} gave no answer in {PATIENCE:g} s", next=command) from error


def _words(ran: subprocess.CompletedProcess[str]) -> str:
    """What it said, without times and source lines; its last lines only say that something failed before."""
    lines = [
        re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: (\([\w.-]+\.\d+\) )?", "", line)
        for line in (ran.stdout + ran.stderr).strip().splitlines()
        if "Warning" not in line and "DEPRECATED" not in line
    ]
    return "; ".join(lines[:3]) or f"exit code {ran.returncode}"


# -- what `lighttpd -p` prints --------------------------------------------------------------------

_HEADER = re.compile(  # 1.4.79 writes `if` before a condition, 1.4.69 doesn't
    r'(?P<otherwise>else )?(?:if )?\$(?P<area>\w+)\["(?P<about>[^"]+)"\] (?P<operator>==|!=|=~|!~|=\^|=\$)'
    r' "(?P<value>.*)" \{'
)
_SETTING = re.compile(r"([\w.-]+)\s+= (.*)")
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\d+)|(=>)|([(),])')


def parse(printed: str) -> Iterator[Block]:
    """Given what `lighttpd -p` printed, yield its blocks in order."""
    lines = iter(printed.splitlines())
    blocks = [Block()]
    depth: list[Block] = [blocks[0]]
    before: list[list[Condition]] = [[]]  # by depth: the conditions that an `else` there excludes
    for line in lines:
        text = line.strip()
        header = _HEADER.fullmatch(text)
        if header or text == "else {":
            own = _condition(header) if header else None
            if header and not header["otherwise"]:
                before[-1] = []
            excluded = [replace(condition, negated=True) for condition in before[-1]]
            if own:
                before[-1].append(own)
            conditions = (*depth[-1].conditions, *excluded, *([own] if own else []))
            depth.append(Block(conditions))
            blocks.append(depth[-1])
            before.append([])
        elif text.startswith("}"):
            depth.pop()
            before.pop()
        elif setting := _SETTING.fullmatch(text):
            rows, deep = [setting[2]], _depth(setting[2])
            while deep > 0:
                rows.append(next(lines))
                deep += _depth(rows[-1])
            depth[-1].settings[setting[1]] = _value(" ".join(rows))
    yield from blocks


def _condition(header: re.Match[str]) -> Condition:
    # "remote-ip" is the newer spelling of "remoteip", and so on.
    about = header["about"].replace("-", "") if header["area"] != "REQUEST_HEADER" else header["about"]
    about = f"header {about}" if header["area"] == "REQUEST_HEADER" else about
    return Condition(about, header["operator"], header["value"])


def _depth(text: str) -> int:
    """How many parentheses it opens more than it closes."""
    marks = [match[4] for match in _TOKEN.finditer(text)]
    return marks.count("(") - marks.count(")")


def _value(text: str) -> Value:
    tokens = [match.groups() for match in _TOKEN.finditer(text)]
    tokens.reverse()  # to be taken from the end, which costs nothing
    return _taken(tokens) if tokens else text


def _taken(tokens: list[tuple[str | None, ...]]) -> Value:
    string, number, _, _ = tokens.pop()
    if string is not None:
        return string.replace('\\"', '"')  # all else stands for itself
    if number is not None:
        return int(number)
    listed: list[Value] = []
    named: dict[str, Value] = {}
    while tokens and tokens[-1][3] != ")":
        if tokens[-1][3] == ",":
            tokens.pop()
            continue
        value = _taken(tokens)
        if tokens and tokens[-1][2]:
            tokens.pop()
            named[str(value)] = _taken(tokens)
        else:
            listed.append(value)
    if tokens:
        tokens.pop()
    return named or listed
