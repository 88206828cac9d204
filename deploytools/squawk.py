"""squawk, the linter for PostgreSQL migrations, as a second opinion on those that are labelled online-safe.

It may veto, never grant: the author's label does. It runs on this computer while a release is packed, and
what it says travels in the release's manifest, so a host needs no squawk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploytools.errors import OperationFailed, UsageError
from deploytools.settings import Settings

# As the adapter `command` on the host has it.
LABEL = re.compile(r"^--[ \t]*online-safe\b", re.MULTILINE)
# Where dbmate, goose and sql-migrate begin with what takes the migration back.
DOWN = re.compile(r"^--[ \t]*(?:migrate:|\+goose |\+migrate )down\b", re.MULTILINE | re.IGNORECASE)
NO_TRANSACTION = re.compile(
    r"^--.*\b(?:transaction:false|no transaction|notransaction)\b", re.MULTILINE | re.I
)
# Rules of taste, or of what we set in the migration's session ourselves; every other one is a veto. From
# https://squawkhq.com/docs/rules, version 2.70.
STYLE = frozenset(
    (
        "ban-char-field",
        "identifier-too-long",
        "require-enum-value-ordering",
        "require-lock-timeout",
        "require-statement-timeout",
        "require-table-schema",
        "require-timeout-settings",
    )
)
STYLE_PREFIX = "prefer-"
PATIENCE = 60  # seconds


def vetoes(settings: Settings, tree: Path) -> dict[str, list[str]] | None:
    """Given a release's tree, return what squawk has against each labelled migration, by file name.

    None where it isn't asked. Raises what `program` raises, and OperationFailed where it gives no answer.
    """
    squawk = program(settings)
    if squawk is None or settings.migrate is None or settings.migrate.files is None:
        return None
    labelled = {
        path.name: text
        for path in sorted((tree / settings.migrate.files).glob("*.sql"))
        if LABEL.search(text := path.read_text(errors="replace"))
    }
    wrapped = {name: text for name, text in labelled.items() if not NO_TRANSACTION.search(text)}
    alone = {name: text for name, text in labelled.items() if name not in wrapped}
    return {
        **_asked(squawk, tree, wrapped, "--assume-in-transaction"),
        **_asked(squawk, tree, alone),
    }


def program(settings: Settings) -> str | None:
    """Where squawk is; beside our own Python, too: a virtual environment need not be activated to run fab.

    None where it isn't to be asked: for another database, by `migrate.squawk: false`, or because it isn't
    installed and nobody insists. Raises UsageError where `migrate.squawk` is true and it isn't there.
    """
    migrate = settings.migrate
    if migrate is None or migrate.engine != "postgresql" or migrate.files is None or migrate.squawk is False:
        return None
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    found = shutil.which("squawk", path=os.pathsep.join(places))
    if found is None and migrate.squawk:
        raise UsageError(
            "squawk is not on this computer, and migrate.squawk says that it is wanted",
            where="deploy.migrate.squawk",
            state="no host was touched",
            next="pip install squawk-cli, or npm install -g squawk-cli; or fab deploy --with-downtime",
        )
    return found


def _asked(program: str, tree: Path, texts: Mapping[str, str], *options: str) -> dict[str, list[str]]:
    """What squawk says of the part of each text that is applied; in `tree`, whose .squawk.toml counts."""
    if not texts:
        return {}
    with tempfile.TemporaryDirectory(prefix="deploytools-") as directory:
        paths = {str(Path(directory, name)): name for name in texts}
        for path, name in paths.items():
            Path(path).write_text(DOWN.split(texts[name], maxsplit=1)[0])
        found: dict[str, list[str]] = {name: [] for name in texts}
        for finding in _findings([program, "--reporter", "json", *options, *paths], tree):
            rule = str(finding["rule_name"])
            if rule not in STYLE and not rule.startswith(STYLE_PREFIX):
                name = paths[str(finding["file"])]
                found[name].append(f"line {int(finding['line']) + 1}: {rule}: {finding['message']}")
    return found


def _findings(argv: Sequence[str], tree: Path) -> list[dict[str, Any]]:
    """Its exit code is 1 for matters of style, too, so only what it prints counts."""
    try:
        ran = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if ran.returncode in (0, 1):
            told = json.loads(ran.stdout)
            if isinstance(told, list):
                return told
        what = (ran.stderr or ran.stdout).strip()[-500:]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        what = str(error)
    raise OperationFailed(
        f"squawk gave no answer: {what or 'it printed nothing'}",
        where=argv[0],
        state="no host was touched",
        next="mend it, or set migrate.squawk to false; or fab deploy --with-downtime",
    )
