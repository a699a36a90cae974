"""Imports that a testbed's parties share: done once, before they are forked."""

import torch

import client.grpc_host
import client.local_data
import client.session
import fedsys.config
import fedsys.tasks.digits
import server.grpc_service
from fedsys.tasks import DataSource

# A thread pool does not survive a fork: a child's first parallel operation would wait for ever.
torch.set_num_threads(1)

# Read the data set once, which imports scikit-learn.
fedsys.tasks.digits.Digits({}).clients(DataSource())

__all__ = ["client", "fedsys", "server"]
