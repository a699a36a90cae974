"""A deployment on this machine under injected faults: real processes, real sockets.

::

    python -m simulations.testbed --fault kill,pause,slow --minutes 5 --seed 7

Every party is a process of its own that runs a ``fedsys`` command as a person would type it; agents
may dial through a proxy that simulates a bad network. While a job runs, faults strike at random.
Then the invariants are checked: no round is lost or used twice, the audit passes, devices have
counted every round that the ledger attributes to them, and no process leaks resources.
"""
