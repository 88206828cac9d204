"""TAB in real shells, with the scripts that `fab --print-completion-script SHELL` prints."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.operators import FAB
from tests.support.site import wait_for

LINES = {
    "maint-": {"maint-down", "maint-preview", "maint-up"},
    "on staging ro": {"rollback"},
    "deploy --with": {"--with-downtime"},
    "setup --in": {"--install-packages"},
}
TYPED = """
COMP_WORDS=(fab {line}) COMP_CWORD={last}
_complete_fab fab "{word}" ""
echo "{line}: ${{COMPREPLY[*]}}"
"""

# Fabric's own script for zsh offers no options.
ZSH = (
    "autoload -U compinit bashcompinit && compinit -D && bashcompinit"
    " && source <(fab --print-completion-script bash)"
)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of somebody in a project, whose home has nothing in it."""
    (tmp_path / "fabfile.py").write_text("from deploytools.tasks import ns  # noqa: F401\n")
    monkeypatch.chdir(tmp_path)
    path = f"{Path(FAB).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path), "TERM": "dumb"}


def shell(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is missing: packaging/system-packages test")
    return program


def test_bash_completes_tasks_and_their_options(environ: dict[str, str]) -> None:
    script = "set -u\nsource <(fab --print-completion-script bash)\ncomplete -p fab"
    for line in LINES:
        script += TYPED.format(line=line, last=len(line.split()), word=line.split()[-1])

    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    registered, *told = done.stdout.splitlines()
    assert registered == "complete -o default -F _complete_fab fab"
    offered = {line: set(words.split()) for line, _, words in (each.partition(": ") for each in told)}
    assert offered == LINES


def test_fish_completes_tasks_and_their_options(environ: dict[str, str]) -> None:
    script = "fab --print-completion-script fish | source\n"
    script += "".join(f"echo {line!r}: (complete -C 'fab {line}')\n" for line in LINES)

    done = subprocess.run(
        [shell("fish"), "--no-config", "-c", script], env=environ, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    offered = {
        line: set(words.split())
        for line, _, words in (each.partition(": ") for each in done.stdout.splitlines())
    }
    assert offered == LINES


def test_zsh_completes_tasks_and_their_options(environ: dict[str, str], tmp_path: Path) -> None:
    """Its completion works at a prompt only: a line is typed, completed, and written to a file by Ctrl-X."""
    typed = tmp_path / "typed"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [shell("zsh"), "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environ,
        start_new_session=True,
    ) as zsh:
        os.close(theirs)
        os.set_blocking(ours, False)

        def types(keys: str, until: str) -> None:
            os.write(ours, keys.encode())
            wait_for(lambda: shown() and typed.exists() and typed.read_text() == until, until)

        def shown() -> bool:
            with contextlib.suppress(BlockingIOError):
                os.read(ours, 65536)
            return True

        try:
            types(f"{ZSH}; echo -n ready >{typed}\n", "ready")
            keep = f"keep() {{ print -rn -- $BUFFER >{typed} }}; zle -N keep; bindkey '^X' keep"
            types(f"{keep}; echo -n >{typed}\n", "")
            types("fab maint-d\t\x18", "fab maint-down ")
            types("\x15fab deploy --with\t\x18", "fab deploy --with-downtime ")
            types("\x15fab on staging ro\t\x18", "fab on staging rollback ")
        finally:
            zsh.kill()
            os.close(ours)
