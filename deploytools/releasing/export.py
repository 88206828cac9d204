"""A clean copy of the source to work in: what git has in a commit, or a directory as it is.

Of a checkout its commit counts alone: neither the working tree, nor this laptop's line ends, umask or git
attributes. `export-ignore` and `export-subst` in the commit's own .gitattributes do, as in any `git archive`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploytools.errors import OperationFailed, UsageError
from deploytools.releasing import git
from deploytools.releasing.git import GitFailed
from deploytools.releasing.selection import FILE, PROGRAM, Rules, Selected, kept, shortened
from deploytools.releasing.source import AS_IT_IS, Source

UNTOUCHED = "no host was touched"
UMASK = 0o022
# Line ends and attributes are the commit's to decide.
SAME = ("-c", "core.autocrlf=false", "-c", "core.eol=lf", "-c", "core.attributesFile=/dev/null")
# The attributes that decide what git archive writes; [attr] makes a name of one's own for some of them.
WRITTEN = re.compile(
    r"\s*(?:\[attr\]|[^#\s]\S*\s(?:.*[\s!-])?(?:export-ignore|export-subst|text|crlf|eol|ident|filter|working-tree-encoding|binary)(?=$|[\s=]))"
)
# From the specification of Git LFS: a pointer's first line, and below how many bytes it stays.
POINTER, LARGEST_POINTER = b"version https://git-lfs.github.com/spec/v1\n", 1024


def export(source: Source, tree: Path, rules: Rules, *, whole: bool) -> list[str]:
    """Copy the source into the empty directory `tree`, each submodule at the commit that is recorded for it.

    Returns what an operator should know of that, a line each.

    Args:
        whole: whether a plain directory is copied with what isn't shipped, because a build may need it.

    Raises UsageError where a submodule can't be had here, OperationFailed where git or tar fails, OSError.
    """
    if source.commit is None:
        passed: list[str] = []
        _copy(source.path, tree, rules, passed, whole=whole)
        return kept(source.path, passed)
    _archive_below(source.path, source.commit, tree)
    return list(_submodules(source.path, source.commit, tree, rules))


def refuse_pointers(tree: Path, selected: Selected) -> None:
    """Raise UsageError where a file is only the pointer that Git LFS keeps in git instead of it."""
    found = [
        item.name
        for item in selected.items
        if item.kind in (FILE, PROGRAM)
        and item.size < LARGEST_POINTER
        and (tree / item.name).read_bytes().startswith(POINTER)
    ]
    if found:
        raise UsageError(
            f"{len(found)} file{'s are' if len(found) > 1 else ' is'} only the pointer that Git LFS keeps",
            where="deploy.source",
            state="nothing was changed",
            next="git lfs install, then git lfs pull, where git-lfs is installed; or source.exclude",
            details=shortened(found),
        )


def _archive_below(path: Path, commit: str, tree: Path) -> None:
    """git judges by attributes as if the directory that it works in were the top, so it works at the top."""
    prefix = git.told(path, "rev-parse", "--show-prefix")
    if not prefix:
        _archive(path, commit, tree)
        return
    with tempfile.TemporaryDirectory(dir=tree.parent) as whole:
        _archive(Path(git.told(path, "rev-parse", "--show-toplevel")), commit, Path(whole), prefix)
        tree.rmdir()
        Path(whole, prefix).rename(tree)


def _refuse_own_attributes(path: Path) -> None:
    """git archive heeds a repository's own info/attributes, which nobody else has, whatever it is told."""
    kept = Path(path, git.told(path, "rev-parse", "--git-path", "info/attributes"))
    try:
        lines = kept.read_text(errors="replace").splitlines()
    except OSError:
        return
    found = [line for line in lines if WRITTEN.match(line)]
    if found:
        raise UsageError(
            f"{kept} would change what is shipped, and it is this computer's alone",
            where="deploy.source.path",
            state="nothing was changed",
            next="move these lines to .gitattributes and commit it; or delete them",
            details=shortened(found),
        )


def _archive(path: Path, commit: str, tree: Path, below: str = ".") -> None:
    """git writes while tar unpacks, so that no archive lies anywhere."""
    _refuse_own_attributes(path)
    command = git.argv(path, *SAME, "archive", "--format=tar", commit, "--", f":(literal){below}")
    environment = git.environment(GIT_ATTR_NOSYSTEM="1")
    with tempfile.TemporaryFile() as git_said, tempfile.TemporaryFile() as tar_said:
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=git_said, env=environment) as archive,
            subprocess.Popen(
                ["tar", "-x", "-f", "-", "-C", tree],
                stdin=archive.stdout,
                stderr=tar_said,
                umask=UMASK,
                env=environment,
            ) as tar,
        ):
            assert archive.stdout
            archive.stdout.close()  # so that git notices when tar ends
        git_said.seek(0)
        tar_said.seek(0)
        said = git_said.read().decode(errors="replace").strip()
        trouble = tar_said.read().decode(errors="replace").strip()
    if "did not match any files" in said:
        raise UsageError(
            f"{commit[:8]} has nothing in {below.rstrip('/')}, so there is nothing to ship",
            where="deploy.source.path",
            state="nothing was changed",
            next=f"commit it; or {AS_IT_IS}",
        )
    if archive.returncode not in (0, -signal.SIGPIPE):
        raise OperationFailed(
            f"git archive failed: {said[-2000:]}",
            where=str(path),
            state=UNTOUCHED,
            next=f"mend what git says (git -C {path} fsck), then the same command again",
        )
    if tar.returncode != 0:
        raise OperationFailed(
            f"the export can't be unpacked: {trouble[-2000:]}",
            where=str(tree),
            state=UNTOUCHED,
            next=f"df -h {tempfile.gettempdir()} (TMPDIR names another place), then the same command again",
        )


def _submodules(path: Path, commit: str, tree: Path, rules: Rules, prefix: str = "") -> Iterator[str]:
    """Export what git archive leaves an empty directory for; yield what it is."""
    for entry in git.ask(path, "ls-tree", "-r", "-z", commit, "--", ".").split(b"\0"):
        if not entry.startswith(b"160000 "):
            continue
        about, _, name = os.fsdecode(entry).partition("\t")
        recorded, place = about.split()[2], path / name
        if not (tree / name).is_dir() or rules.reason(prefix + name, directory=True):
            continue
        try:
            if not (place / ".git").exists():
                raise GitFailed("it is not checked out")
            git.ask(place, "cat-file", "-e", f"{recorded}^{{commit}}")
        except GitFailed as error:
            raise UsageError(
                f"the submodule {prefix}{name} is not here at {recorded[:8]}, the commit recorded for it",
                where=str(place),
                state="nothing was changed",
                next=f"git -C {path} submodule update --init --recursive; or add it to source.exclude",
                details=str(error).splitlines(),
            ) from error
        _archive(place, recorded, tree / name)
        yield f"submodule {prefix}{name}: shipped at {recorded[:8]}, the commit recorded for it"
        yield from _submodules(place, recorded, tree / name, rules, f"{prefix}{name}/")


def _copy(
    directory: Path, tree: Path, rules: Rules, passed: list[str], *, whole: bool, prefix: str = ""
) -> None:
    """Everything but .git, links as links, with times and the right to execute.

    What is shared and not copied goes to `passed`.
    """
    for entry in os.scandir(directory):
        name, target = prefix + entry.name, tree / entry.name
        reason = rules.reason(name, directory=entry.is_dir(follow_symlinks=False))
        if reason == "git" or (reason and not whole):
            if reason == "shared":
                passed.append(name)
            continue
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            target.mkdir()
            _copy(Path(entry.path), target, rules, passed, whole=whole, prefix=f"{name}/")
        elif entry.is_file():
            shutil.copyfile(entry.path, target)
            about = entry.stat()
            target.chmod(0o755 if about.st_mode & 0o100 else 0o644)
            os.utime(target, ns=(about.st_mtime_ns, about.st_mtime_ns))
        elif not reason:
            raise UsageError(
                f"{entry.path} is neither a file, a directory nor a link",
                where="deploy.source.path",
                state="nothing was changed",
                next="take it out of the source, or add it to source.exclude, and deploy again",
            )
