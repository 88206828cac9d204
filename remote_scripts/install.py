"""Put one application's host side in place, or say what would change. Run as root by `fab setup`.

Travels to the host inside the bundle that it puts in place: directories, files and links, each with
its owner (and that account's group) and mode. Everything is checked before it lands: sudoers with
visudo, lighttpd's configuration with `lighttpd -tt`; a check that fails leaves the host as it was.
A second run changes nothing and says so.
"""

from __future__ import annotations

import base64
import compileall
import difflib
import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path


class Refused(Exception):
    """The bundle can't be put in place; nothing was changed, or it was taken back."""


def main(bundle: dict) -> None:
    try:
        if Path("/run/systemd/system").is_dir():
            for kind, entries in bundle["where_systemd_runs"].items():
                bundle[kind] = bundle[kind] + entries
        changes = missing(bundle)
        if not bundle["plan_only"] and changes:
            apply(bundle)
            if any(change["path"].startswith("/etc/systemd/") for change in changes):
                systemctl("daemon-reload")
        result = {"ok": True, "changes": changes}
    except (Refused, OSError, KeyError) as error:
        result = {
            "ok": False,
            "error": {"what": str(error), "state": "nothing was changed", "next": "mend it, then fab setup"},
        }
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 3)


def missing(bundle: dict) -> list[dict]:
    """What has to change, as {"path", "what", "diff"}."""
    changes = []
    for entry in bundle["directories"]:
        path = Path(entry["path"])
        check_directory(path, Path(entry.get("within", path)))
        if not path.exists():
            changes.append({"path": str(path), "what": "create directory", "diff": ""})
        elif attributes(path) != wanted(entry):
            changes.append({"path": str(path), "what": "owner or mode", "diff": differing(path, entry)})
    for entry in bundle["files"]:
        path, new = Path(entry["path"]), base64.b64decode(entry["content"])
        if not path.exists():
            changes.append({"path": str(path), "what": "create", "diff": diff(path, b"", new)})
        elif entry["keep"]:
            continue  # the operator's own from now on
        elif path.read_bytes() != new:
            changes.append({"path": str(path), "what": "change", "diff": diff(path, path.read_bytes(), new)})
        elif attributes(path) != wanted(entry):
            changes.append({"path": str(path), "what": "owner or mode", "diff": differing(path, entry)})
    for entry in bundle["links"]:
        path = Path(entry["path"])
        if path.exists() and not path.is_symlink():
            raise Refused(f"{path} is there, and is not a link to {entry['target']}: move it away first")
        leave_to_its_application(path, entry)
        if not path.is_symlink() or os.readlink(path) != entry["target"]:
            changes.append({"path": str(path), "what": f"link to {entry['target']}", "diff": ""})
    return changes


def check_directory(path: Path, within: Path) -> None:
    """Raise Refused for what is no directory, or is reached by a link below `within`, others' place."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise Refused(f"{path} is there, and is no directory")
    if any(place.is_symlink() for place in path.parents if within in place.parents):
        raise Refused(f"{path} leads out of {within} by a symbolic link")


def leave_to_its_application(path: Path, entry: dict) -> None:
    """Raise Refused where a link leads to a program of another application than the one to be set up."""
    if not path.is_symlink() or "application" not in entry:
        return
    try:
        there = json.loads((Path(os.readlink(path)).parent / "config.json").read_text())["application"]
    except (OSError, ValueError, KeyError):
        return
    if there != entry["application"]:
        raise Refused(
            f"{path} belongs to the application {there}: correct deploy.application,"
            " or give this one a webserver.maintenance_dir of its own"
        )


def apply(bundle: dict) -> None:
    for entry in bundle["files"]:
        if entry["path"].startswith("/etc/sudoers.d/"):
            check_sudoers(base64.b64decode(entry["content"]))
    for entry in bundle["directories"]:
        Path(entry["path"]).mkdir(parents=True, exist_ok=True)
        own(entry["path"], entry)
    before = {}
    changed_configuration = False
    for entry in bundle["files"]:
        path, new = Path(entry["path"]), base64.b64decode(entry["content"])
        old = path.read_bytes() if path.exists() else None
        if old is None or (old != new and not entry["keep"]):
            if entry["configuration"]:
                before[path] = old
                changed_configuration = True
            write(path, new, entry)
        elif not entry["keep"]:
            own(path, entry)
    for entry in bundle["links"]:
        path = Path(entry["path"])
        if not path.is_symlink() or os.readlink(path) != entry["target"]:
            if entry["configuration"]:
                before[path] = None
                changed_configuration = True
            link(path, entry["target"])
    compileall.compile_dir(bundle["hostlib"], quiet=1)  # who may not write there would compile each time
    if changed_configuration:
        check_lighttpd(bundle["lighttpd"], before)
        if bundle["reload"]:
            reload_lighttpd()


def check_sudoers(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        checked = subprocess.run(["visudo", "-cf", file.name], capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        raise Refused(f"visudo refuses the sudoers file: {checked.stdout.strip()} {checked.stderr.strip()}")


def check_lighttpd(configuration: str, before: dict) -> None:
    """Ask lighttpd about its configuration; put back what was there if it refuses it."""
    checked = subprocess.run(
        ["lighttpd", "-tt", "-f", configuration], capture_output=True, text=True, check=False
    )
    if checked.returncode == 0:
        return
    for path, old in before.items():
        if old is None:
            path.unlink()
        else:
            write(path, old, {"owner": "root", "mode": 0o644})
    raise Refused(f"lighttpd refuses the configuration: {checked.stdout.strip()} {checked.stderr.strip()}")


def reload_lighttpd() -> None:
    active = subprocess.run(["systemctl", "is-active", "--quiet", "lighttpd"], check=False).returncode == 0
    verb = "reload" if active else "restart"
    systemctl(verb, "lighttpd")


def systemctl(*argv: str) -> None:
    done = subprocess.run(["systemctl", *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"systemctl {' '.join(argv)} failed: {done.stderr.strip()}")


def write(path: Path, content: bytes, entry: dict) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        own(file.fileno(), entry)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def link(path: Path, target: str) -> None:
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    temporary.symlink_to(target)
    os.replace(temporary, path)


def own(path: int | str | Path, entry: dict) -> None:
    if not isinstance(path, int):
        # A link that its owner puts there while we work must not lead us elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            own(descriptor, entry)
        finally:
            os.close(descriptor)
        return
    if os.geteuid() == 0:
        os.fchown(path, *wanted(entry)[:2])
    os.fchmod(path, entry["mode"])


def attributes(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_uid, stat.st_gid, stat.st_mode & 0o7777


def wanted(entry: dict) -> tuple[int, int, int]:
    try:
        owner = pwd.getpwnam(entry["owner"])
        group = pwd.getpwnam(entry.get("group_of", entry["owner"])).pw_gid
    except KeyError as error:
        raise Refused(f"{error.args[0]}: create the account first") from error
    return owner.pw_uid, group, entry["mode"]


def differing(path: Path, entry: dict) -> str:
    uid, gid, mode = attributes(path)
    return f"{uid}:{gid} {mode:o} -> {entry['owner']} {entry['mode']:o}"


def diff(path: Path, old: bytes, new: bytes) -> str:
    lines = difflib.unified_diff(
        old.decode(errors="replace").splitlines(),
        new.decode(errors="replace").splitlines(),
        str(path),
        str(path),
        lineterm="",
    )
    return "\n".join(lines)


if "BUNDLE" in globals():  # `fab setup` passes it in
    main(globals()["BUNDLE"])
