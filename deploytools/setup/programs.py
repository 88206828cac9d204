"""The host programs as they stand in this toolkit: what is installed, and what only travels to install it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploytools.setup.entries import Entry, file


def remote_scripts() -> Path:
    """The host programs: inside the package where it is installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "remote_scripts"
    return inside if inside.is_dir() else package.parent / "remote_scripts"


def installed(owner: str, page: bytes) -> Iterator[Entry]:
    """The files of one version, by their path in its directory; `page` is the maintenance page.

    The programs are those without a suffix; what they share is in hostlib.
    """
    source = remote_scripts()
    for path in sorted(source.iterdir()):
        if _is_program(path):
            yield file(path.name, path.read_bytes(), owner, 0o755)
    yield file("maint.html", page, owner, 0o644)
    for name, content in _modules("hostlib"):
        yield file(name, content, owner, 0o644)


def names() -> list[str]:
    """The programs by name."""
    return sorted(path.name for path in remote_scripts().iterdir() if _is_program(path))


def installer() -> list[Entry]:
    """The host's half of set-up, which doesn't stay there; it uses hostlib as well."""
    return [file(name, content, "root") for name, content in _modules("hostsetup")]


def _modules(package: str) -> Iterator[tuple[str, bytes]]:
    source = remote_scripts()
    for path in sorted(source.glob(f"{package}/**/*.py")):
        yield str(path.relative_to(source)), path.read_bytes()


def _is_program(path: Path) -> bool:
    return path.is_file() and not path.suffix and not path.name.startswith(".")
