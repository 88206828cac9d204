"""The hot swap. Read the program `swap` first; its steps are here.

what there is    generations (their records), links (where visitors are led), swaplock
start            managers: systemd or direct; launch, generation_runner (what both begin with), processes
probe            probe, fastcgi, applog
flip, barrier    links, barrier, unixsockets (who is connected)
drain, stop      retiring, unixsockets
besides          boot (after a reboot), account (what is told at the end)
"""
