"""The fault matrix: downtime windows on real hosts, broken in every way, and what has to hold afterwards.

    application    PHP on two hosts, PostgreSQL on the first; a migration that old code can't run after
    observer       the public: a process of its own that asks every host all the time
    site           the fleet set up so, and restored between two trials in one round trip
    points         stops the operator's process at an exact moment of the run
    faults         what can be broken, and what each fault must cause
    recovery       what the second operator types, in another checkout with another commit
    invariants     what has to hold, whatever was broken
    trials         fault x point x host x way of recovery; one trial from its beginning to its end

Three modules of tests hold the everyday trials. `make soak SOAK="faults --trials 300 --seed 7"` draws from
all there are (tests/measure/faults.py), and a failing one says how to run it alone.
"""
