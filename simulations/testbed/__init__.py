"""A deployment on this machine, to be maltreated: real processes, real sockets, faults on purpose.

::

    python -m simulations.testbed --fault kill,pause,slow --minutes 5 --seed 7

Every party is a process of its own that runs a ``fedsys`` command as a person would type it;
agents may dial through a proxy that is as bad as a network can be. While a job runs, faults strike
at random; then what must hold is checked: rounds are neither lost nor used twice, the audit passes,
devices have counted all that the ledger says of them, nothing leaks.
"""
