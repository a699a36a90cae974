"""How a device connects: mutual TLS under the one authority that it pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from fedsys.errors import ConfigError, EnrollmentError
from fedsys.wire.frames import MAX_FRAME

__all__ = ["CHANNEL_OPTIONS", "call", "open_channel"]

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
)
_SECONDS = 30.0
_REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
)


def open_channel(address: str, *, ca: bytes, key: bytes, certificate: bytes) -> grpc.Channel:
    """A channel with mutual TLS; all arguments but the address are PEM."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=certificate
    )
    return grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def call(
    channel: grpc.Channel,
    path: str,
    request: Any,
    reply: Callable[[bytes], Any],
    *,
    address: str = "",
    explain: Callable[[], str | None] | None = None,
) -> Any:
    """One unary call with a deadline.

    Args:
        channel: to the coordinator.
        path: of the method.
        request: its message.
        reply: reads the answer.
        address: the channel's, for the error message.
        explain: finds out why it was not reached, if it was not.

    Raises:
        EnrollmentError: the coordinator declined; the message is its reason.
        ConfigError: the coordinator was not reached.
    """
    stub = channel.unary_unary(
        path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=reply
    )
    try:
        return stub(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        if error.code() in _REFUSALS:
            raise EnrollmentError(error.details()) from None
        why = explain() if explain is not None else None
        raise ConfigError(
            f"{address}{address and ': '}the coordinator was not reached "
            f"({error.code().name.lower()}: {error.details()}); "
            + (
                why
                or "has the token, or the certificate, expired, or was it made for another "
                "coordinator?"
            )
        ) from None
