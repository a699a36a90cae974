"""What the processes of a test federation share: imported once, before they are forked."""

import client.grpc_host
import client.session
import client.worker
import fedsys.tasks.digits
import server.grpc_service
import simulations.randomness

__all__ = ["client", "fedsys", "server", "simulations"]
