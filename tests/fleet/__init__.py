"""A fleet of real Debian hosts on this machine: systemd as process 1, sshd, lighttpd, addresses of their own.

In a test below tests/fleet, the fixture `fleet` is a fleet that all tests of the module share; the mark says
which (without it: one host of bookworm):

    pytestmark = pytest.mark.fleet(3, suites=("bookworm", "trixie"))

    def test_down_is_a_fact_on_every_host(fleet: Fleet) -> None:
        fleet.operator.fab("setup", "--as-user", "root", "--yes")
        fleet.operator.fab("maint-down")
        web1 = fleet["web1"]
        assert web1.get("/").status == 503

A fleet of your own, where a test ruins it: `with Fleet(2) as fleet:`. Booting takes two or three seconds.
More Debian packages than `images.PACKAGES`: `Fleet(1, packages=["postgresql"])`, or in the mark.

What there is:

    fleet.hosts, fleet["web1"], for host in fleet      Host, see tests/fleet/hosts.py for all it can do
    fleet.operator.fab("status", code=3)               fab in a project directory, to its end; its exit code
    fleet.operator.start("deploy")                     the same, as a Popen
    fleet.operator.directory                           with fabric.yaml and fabfile.py; write your own there
    sample.begin(fleet), sample.commit(fleet, "...")   an application of one page there, ready for `fab setup`
    fleet.ssh(host, "true", user="deploy")             the argv of a plain ssh
    fleet.ssh_config, fleet.known_hosts                for tools of others: `ssh -F`
    fleet.in_parallel(function)                        function(host) on all hosts at the same time

    host.name, host.address, host.suite, host.host_key
    host.run(argv or "shell line", user=, check=, input=, timeout=)      as root, not over ssh
    host.start(argv), host.entering(argv)              a Popen; the argv that runs it from this machine
    host.read(path), host.write(path, text, mode=, owner=), host.exists(path), host.pids("lighttpd")
    host.get("/path", headers=), host.request("POST", ...)               HTTP from this machine, as a visitor
    host.stop(), host.boot(), host.reboot(), host.power_off(), host.is_running, host.memory
    host.link_down(), host.link_up(), host.delay(100), host.kill("sshd"), host.kill("lighttpd")
    host.fill_disk(free=4096), host.free_disk(), host.small_disk("/etc/lighttpd", free=4096, inodes=0)
    host.power_off_before(argv, "rename")              the plug pulled right before that system call

The operator logs in as `deploy` (password `*`, no rights) or as root, with one key, and trusts every host's
own host key. Nothing of a fleet is left, whatever dies: see tests/fleet/keeper.py.

By hand: `make fleet HOSTS=3 SUITE=trixie`, `python -m tests.fleet --help`.
"""

from tests.fleet.fleet import Fleet
from tests.fleet.hosts import Host

__all__ = ["Fleet", "Host"]
