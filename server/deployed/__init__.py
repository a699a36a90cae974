"""Jobs of a deployed coordinator: queue, preparation, consent, rounds, talking with devices.

Nothing here knows which transport carries the messages; `server.grpc_host` and `server.flower_host`
do.
"""
