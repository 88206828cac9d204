"""TAB in a real bash, with the script that `fab --print-completion-script bash` prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.operators import FAB

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


def test_bash_completes_tasks_and_their_options(tmp_path: Path) -> None:
    (tmp_path / "fabfile.py").write_text("from deploytools.tasks import ns  # noqa: F401\n")
    script = "set -u\nsource <(fab --print-completion-script bash)\ncomplete -p fab"
    for line in LINES:
        script += TYPED.format(line=line, last=len(line.split()), word=line.split()[-1])
    environ = {**os.environ, "PATH": f"{Path(FAB).parent}:{os.environ['PATH']}"}

    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    registered, *told = done.stdout.splitlines()
    assert registered == "complete -o default -F _complete_fab fab"
    offered = {line: set(words.split()) for line, _, words in (each.partition(": ") for each in told)}
    assert offered == LINES
