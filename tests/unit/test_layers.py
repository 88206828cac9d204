"""Dependencies point one way; docs/design.md draws the picture that this pins."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import deploytools

PACKAGE = Path(deploytools.__file__).parent
PURE = {"settings", "plan", "saga", "commands", "errors", "setup"}
# What each layer may import of ours. Nothing here imports `tasks`, which is the top.
ALLOWED = {
    "errors": set(),
    "settings": {"errors", "sandbox"},  # the sandbox is a built-in environment
    "plan": {"errors", "settings"},
    "saga": {"plan"},
    "commands": {"plan", "saga", "settings"},
    "journal": {"commands", "plan", "saga", "settings"},
    "fleet": {"errors", "settings", "remote"},
    "engine": {
        *(
            "commands",
            "errors",
            "fleet",
            "journal",
            "moments",
            "plan",
            "releasing",
            "remote",
            "reporter",
            "saga",
        ),
        *("settings", "ssh"),
    },
    "probe": set(),
    "reporter": {"commands", "journal", "plan", "probe"},
    "hostnames": set(),
    "survey": {"commands", "engine", "errors", "fleet", "hostnames", "journal", "remote", "settings"},
    "conclusion": {"engine", "errors", "journal", "plan", "saga"},
    "moments": {"errors"},
    "releasing": {"errors", "settings", "squawk", "ssh"},
    "squawk": {"errors", "settings"},
    "setup": {"commands", "errors", "settings"},
    "provisioning": {"commands", "engine", "errors", "fleet", "remote", "settings", "setup", "ssh"},
}
EFFECTS = {"subprocess", "socket", "fabric", "paramiko", "invoke", "time", "random", "secrets", "threading"}


def imports(name: str) -> set[str]:
    """The modules that a module (or the modules of a package) imports, wherever in it."""
    path = PACKAGE / f"{name}.py"
    files = [path] if path.exists() else sorted((PACKAGE / name).glob("*.py"))
    assert files, name
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= (
                    {f"{node.module}.{alias.name}" for alias in node.names}
                    if node.module == "deploytools"
                    else {node.module}
                )
    return found


def ours(name: str) -> set[str]:
    found = {module.split(".")[1] for module in imports(name) if module.startswith("deploytools.")}
    return found - {name, "__version__"}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_a_layer_imports_only_what_is_below_it(name: str) -> None:
    assert ours(name) <= ALLOWED[name]


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_core_can_not_reach_the_outside_world(name: str) -> None:
    assert not {module.split(".")[0] for module in imports(name)} & EFFECTS


def test_only_the_remote_layer_talks_ssh() -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "paramiko")
        or (isinstance(node, ast.Import) and any(alias.name.startswith("paramiko") for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "fabric" and "Connection" in ast.dump(node))
    }

    assert users == {"remote.py", "ssh"}


def test_the_fabfile_exports_ns_and_nothing_else() -> None:
    tree = ast.parse((PACKAGE.parent / "fabfile.py").read_text())

    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert names == ["ns"]
    assert len(tree.body) == 3  # the docstring, the import, __all__
