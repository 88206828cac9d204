"""The systemd units of an application."""

from __future__ import annotations

from deploytools import __version__
from deploytools.settings import Settings
from deploytools.setup.entries import Entry, directory, file, link

UNITS = "/etc/systemd/system"


def where_systemd_runs(settings: Settings) -> dict[str, list[Entry]]:
    """The boot unit, and the link by which `systemctl enable` would enable it."""
    name = f"deploytools-{settings.application}.service"
    wants = f"{UNITS}/multi-user.target.wants"
    return {
        "directories": [directory(wants, "root", keep=True)],
        "files": [file(f"{UNITS}/{name}", boot_unit(settings).encode(), "root", kind="unit")],
        "links": [link(f"{wants}/{name}", f"{UNITS}/{name}", kind="unit")],
    }


def boot_unit(settings: Settings) -> str:
    """What starts the current release after a reboot; set-up enables it, but doesn't start it."""
    return f"""# {settings.application}: `fab setup` of deploytools {__version__} wrote this; edits are lost.
[Unit]
Description={settings.application}: start the current release after a reboot
After=lighttpd.service remote-fs.target postgresql.service mariadb.service
RequiresMountsFor={settings.root}
ConditionPathExists={settings.root}/current
StartLimitIntervalSec=15min
StartLimitBurst=5

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={settings.tools_dir}/swap
# 7: it serves, but something of before could not be stopped.
SuccessExitStatus=7
Restart=on-failure
RestartSec=10
# `swap` alone ends generations: stopping this unit must not end the one that serves.
KillMode=process

[Install]
WantedBy=multi-user.target
"""
