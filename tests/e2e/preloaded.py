"""What the processes of a test federation share: imported once, before they are forked."""

import client.grpc_host
import client.session
import client.worker
import fedsys.tasks.digits
import server.grpc_service
import simulations.randomness
from fedsys.tasks import DataSource

# reads the data set once, which imports scikit-learn
fedsys.tasks.digits.Digits({}).clients(DataSource())

__all__ = ["client", "fedsys", "server", "simulations"]
