"""lighttpd's part: mod_magnet first, the maintenance script for every request, the application's socket."""

from __future__ import annotations

import re

from deploytools import __version__
from deploytools.settings import Settings


def snippet(settings: Settings) -> str:
    """What `conf-available` gets.

    An application with a name of its own (webserver.host_header) has its settings to itself; without one
    the whole web server is its.
    """
    named = settings.webserver.host_header is not None
    site = f'magnet.attract-raw-url-to = ( "{settings.webserver.maintenance_dir}/maint.lua" )\n'
    # What the whole web server already does with scripts goes on; a site of its own inherits nothing of that.
    assign = "=" if named else "+="
    site += _scripts(settings, assign) if settings.webserver.document_root else _everything(settings, assign)
    # Each site has its counters to itself, for this host alone.
    statistics = f'status.statistics-url := "{settings.webserver.statistics_path}"\n'
    site += f'$HTTP["remote-ip"] =~ "^(127\\.0\\.0\\.1|::1)$" {{\n{_indented(statistics)}}}\n'
    if named:
        site = f"{_condition(settings)} {{\n{_indented(site)}}}\n"
    return f"""# {settings.application}: `fab setup` of deploytools {__version__} wrote this; edits are lost.
# mod_magnet comes first, so that nothing answers before the maintenance switch.
server.modules := ( "mod_magnet" ) + server.modules + ( "mod_rewrite", "mod_status", "mod_fastcgi" )
# "simple" would notice a flipped switch up to a second late.
server.stat-cache-engine := "disable"
{site}"""


def _condition(settings: Settings) -> str:
    """That a request is for one of the site's names, whatever the port."""
    names = [name.lower() for name in (settings.webserver.host_header, *settings.webserver.aliases) if name]
    if len(names) == 1:
        return f'$HTTP["host"] == "{names[0]}"'
    either = "|".join(re.escape(name) for name in names)
    return f'$HTTP["host"] =~ "^({either})(:[0-9]+)?$"'


def _everything(settings: Settings, assign: str) -> str:
    """Every request goes to the app, which finds the path in PATH_INFO (WSGI, Perl, C)."""
    return f"""fastcgi.server {assign} ( "/" => ( "{settings.application}" => (
  "socket"              => "{settings.root}/run/app.sock",
  "check-local"         => "disable",
  "fix-root-scriptname" => "enable",
) ) )
"""


def _scripts(settings: Settings, assign: str) -> str:
    """Files are lighttpd's; scripts, and whatever is no file, are the app's (PHP).

    php-cgi finds a script by its path below `current`, which is why `swap` changes `current` first.
    """
    return f"""server.document-root := "{settings.root}/current/{settings.webserver.document_root}"
index-file.names := ( "index.php", "index.html" )
url.rewrite-if-not-file := ( "" => "/index.php${{url.path}}${{qsa}}" )
fastcgi.server {assign} ( ".php" => ( "{settings.application}" => (
  "socket"      => "{settings.root}/run/app.sock",
  "check-local" => "disable",
) ) )
"""


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
