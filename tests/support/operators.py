"""A directory in which somebody types `fab`."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import prepared
from tests.support.prepared import FAB


@dataclass
class Operator:
    """Somebody in a project directory."""

    directory: Path

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Begin `fab ARGUMENTS` in a process group of its own, as a terminal would."""
        environ = {**os.environ, "XDG_STATE_HOME": str(self.directory / "state"), **variables}
        return prepared.Popen(
            [FAB, *arguments],
            cwd=self.directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fab(
        self, *arguments: str, code: int = 0, timeout: float = 110, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `fab ARGUMENTS` to its end, which has to be exit code `code` without a traceback."""
        process = self.start(*arguments, **variables)
        stdout, stderr = process.communicate(timeout=timeout)
        assert process.returncode == code, (
            f"fab {' '.join(arguments)}: {process.returncode}\n{stdout}\n{stderr}"
        )
        assert "\nTraceback" not in f"\n{stderr}"  # a migration's log may have one, behind its host
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)
