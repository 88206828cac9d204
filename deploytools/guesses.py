"""What people type, and what they mean by it: words that are no task, options that there aren't. Pure."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Sequence

# Words that people try. None of them is another name of these tasks: `fab up` in the wrong terminal would
# lift a window. Those with a colon are Capistrano's.
WORDS = {
    "up": ("maint-up", "sandbox.up"),
    "down": ("maint-down", "sandbox.down"),
    "start": ("maint-up", "hotswap"),
    "stop": ("maint-down", "sandbox.down"),
    "maint": ("maint-down", "maint-up"),
    "maintenance": ("maint-down", "maint-up"),
    "preview": ("maint-preview",),
    "abort": ("deploy --abort",),
    "cancel": ("deploy --abort",),
    "resume": ("deploy --resume",),
    "continue": ("deploy --resume",),
    "plan": ("deploy --plan", "setup --plan"),
    "lock": ("status",),
    "info": ("status",),
    "health": ("status", "doctor"),
    "ping": ("doctor",),
    "logs": ("status", "history"),
    "log": ("history", "report"),
    "runs": ("history",),
    "migrations": ("migrate",),
    "schema": ("migrate",),
    "install": ("setup",),
    "provision": ("setup",),
    "bootstrap": ("init", "setup"),
    "upgrade": ("setup",),
    "uninstall": ("setup --remove",),
    "new": ("init",),
    "revert": ("rollback",),
    "undo": ("rollback",),
    "release": ("deploy", "releases"),
    "ship": ("deploy",),
    "push": ("deploy",),
    "reload": ("hotswap",),
    "use": ("on",),
    "environment": ("on",),
    "sandbox": ("sandbox.up", "on sandbox status"),
    "demo": ("sandbox.up",),
    "enable": ("maint-up",),
    "disable": ("maint-down",),
    "maintenance:enable": ("maint-down",),
    "maintenance:disable": ("maint-up",),
    "web:disable": ("maint-down",),
    "web:enable": ("maint-up",),
    "deploy:web:disable": ("maint-down",),
    "deploy:web:enable": ("maint-up",),
    "deploy:rollback": ("rollback",),
    "deploy:restart": ("hotswap",),
    "deploy:check": ("doctor",),
    "deploy:migrate": ("migrate", "deploy --with-downtime"),
    "versions": ("releases",),
    "sandbox.start": ("sandbox.up",),
    "sandbox.stop": ("sandbox.down",),
}
OPTIONS = {
    "--dry-run": "--plan",
    "--dry": "--plan",
    "-n": "--plan",
    "--downtime": "--with-downtime",
    "--maintenance": "--with-downtime",
    "--message": "--reason",
    "-m": "--reason",
    "--branch": "--ref",
    "--tag": "--ref",
    "--release": "--to",
    "-y": "--yes",
}
# Where a task is given a word that is no option, which of its options that is meant for.
_VALUES = ("--ref", "--to", "--force", "--reason", "--application")


def task(word: str, rest: Sequence[str], known: Collection[str]) -> str:
    """Given a word that is no task, what follows it and the tasks there are, what to type instead."""
    if word == "help":
        return "fab --list, and fab --help TASK"
    if rest and rest[0] in known and word not in WORDS:  # `fab staging deploy`
        return f"fab on {shlex.join([word, *rest])}, or fab --list"
    close = WORDS.get(word.lower()) or difflib.get_close_matches(word, known, n=2)
    return "".join(f"fab {name}, or " for name in close) + "fab --list"


def option(task: str, word: str, flags: Collection[str], known: Collection[str]) -> str:
    """Given a word behind a task that is none of its options, what to type instead."""
    name, equals, value = word.partition("=")
    long = [flag for flag in flags if flag.startswith("--")]
    meant: str | None = None
    if name.startswith("-"):
        found = difflib.get_close_matches(name.replace("_", "-"), long, n=1)
        meant = OPTIONS[name] if OPTIONS.get(name) in flags else found[0] if found else None
        meant = meant and f"fab {task} {meant}{equals}{shlex.quote(value) if value else ''}"
    elif close := WORDS.get(word) or difflib.get_close_matches(word, known, n=1):
        meant = f"fab {task} {close[0]}"
    elif behind := next((flag for flag in _VALUES if flag in flags), None):
        meant = f"fab {task} {behind} {shlex.quote(word)}"
    return f"{meant}, or fab --help {task}" if meant else f"fab --help {task}"


def respelled(word: str, known: Collection[str]) -> str | None:
    """The task that is spelled like `word` but for dots, dashes and underscores: `maint.down`, `hot-swap`."""
    alike = [name for name in known if _letters(name) == _letters(word)]
    return alike[0] if len(alike) == 1 else None


def _letters(word: str) -> str:
    return re.sub(r"[-_.]", "", word)
