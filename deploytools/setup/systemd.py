"""The systemd units of an application: what runs its generations, also after a reboot.

deploytools-APP@.socket, @.service   a pair per generation: see remote_scripts/hostlib/swapping/systemd.py
deploytools-APP.service              after a reboot
"""

from __future__ import annotations

from deploytools import __version__
from deploytools.settings import Settings
from deploytools.setup.entries import Entry, directory, file, link

UNITS = "/etc/systemd/system"


def where_systemd_runs(settings: Settings) -> dict[str, list[Entry]]:
    """The units, and the link by which `systemctl enable` would enable the boot unit."""
    name = f"deploytools-{settings.application}"
    wants = f"{UNITS}/multi-user.target.wants"
    return {
        "directories": [directory(wants, "root", keep=True)],
        "files": [
            file(f"{UNITS}/{name}{kind}", content.encode(), "root", kind="unit")
            for kind, content in (
                ("@.socket", socket_template(settings)),
                ("@.service", service_template(settings)),
                (".service", boot_unit(settings)),
            )
        ],
        "links": [link(f"{wants}/{name}.service", f"{UNITS}/{name}.service", kind="unit")],
    }


def socket_template(settings: Settings) -> str:
    """The listening socket of one generation: open from its start until it has drained."""
    return f"""{_written_by(settings)}[Unit]
Description={settings.application}: socket of generation %i
RequiresMountsFor={settings.root}
# When the host goes down, the web server ends first: nobody meets it without its application.
Before=lighttpd.service
CollectMode=inactive-or-failed

[Socket]
ListenStream={settings.root}/run/app.%i.sock
SocketUser={settings.webserver.user}
SocketMode=0660
# The kernel takes net.core.somaxconn where that is less.
Backlog=65535
RemoveOnStop=yes
# A socket that is triggered too often is closed by default, with whoever waits in it.
TriggerLimitIntervalSec=0
"""


def service_template(settings: Settings) -> str:
    """The application of one generation; `systemctl edit` limits and sandboxes it."""
    runner = f"{settings.tools_dir}/current/hostlib/swapping/generation_runner.py"
    return f"""{_written_by(settings)}[Unit]
Description={settings.application}: generation %i
RequiresMountsFor={settings.root}
Before=lighttpd.service
CollectMode=inactive-or-failed
# One that gave up would close its socket.
StartLimitIntervalSec=0

[Service]
Type=exec
User={settings.app.user}
EnvironmentFile={settings.root}/run/app.%i.env
ExecStart=/usr/bin/python3 -IS {runner}
StandardOutput=append:{settings.root}/log/app.log
StandardError=inherit
IgnoreSIGPIPE=no
Restart=always
RestartSec=250ms
# One process that takes too much memory must not end the others, which have requests in them.
OOMPolicy=continue
# It is only stopped when no request is in it.
TimeoutStopSec=10
"""


def boot_unit(settings: Settings) -> str:
    """What starts the serving generation again after a reboot; set-up enables it, but doesn't start it.

    The web server starts as soon as the socket is there, so nobody is refused. Where the generation doesn't
    get healthy, `swap` goes on to try a new one.
    """
    return f"""{_written_by(settings)}[Unit]
Description={settings.application}: start the serving generation again after a reboot
Before=lighttpd.service
RequiresMountsFor={settings.root}
ConditionPathIsSymbolicLink={settings.root}/current
StartLimitIntervalSec=15min
StartLimitBurst=5

[Service]
Type=notify
RemainAfterExit=yes
ExecStart={settings.tools_dir}/swap --boot
# 7: it serves, but something of before could not be stopped.
SuccessExitStatus=7
Restart=on-failure
RestartSec=10
# `swap` alone ends generations: stopping this unit must not end the one that serves.
KillMode=process

[Install]
WantedBy=multi-user.target
"""


def _written_by(settings: Settings) -> str:
    return f"# {settings.application}: `fab setup` of deploytools {__version__} wrote this; edits are lost.\n"
