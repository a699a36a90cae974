"""The way from a device to its coordinator: what is wrong with it, in words.

gRPC reports any failed connection as "unavailable". This module looks at each step by itself: the
proxy, the connection, the certificate that answers, the clocks, and at last one call that the
coordinator admits as it would admit a session.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from client.grpc_channel import open_channel
from client.identity import Credentials
from fedsys.printable import printable
from fedsys.wire import fleet_pb2
from fedsys.wire.address import host_and_port
from fedsys.wire.services import FLEET, method

__all__ = ["Proxy", "admitted", "fault", "proxy_for"]

_SECONDS = 5.0
_CALL_SECONDS = 10.0
_MOST_SKEW = 300.0
_SPARED = ("no_grpc_proxy", "no_proxy")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy that gRPC takes from the environment.

    Attributes:
        variable: that names it.
        host: of the proxy.
        port: of the proxy.
    """

    variable: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"the proxy {self.host}:{self.port} of ${self.variable}"


def proxy_for(host: str) -> Proxy | None:
    """The proxy through which gRPC reaches a host, by its own rules; None for none."""
    spared = next((os.environ[each] for each in _SPARED if os.environ.get(each)), "")
    if any(host.endswith(each.strip()) for each in spared.split(",") if each.strip()):
        return None
    for variable in _PROXIES:
        value = os.environ.get(variable)
        if not value:
            continue
        try:
            found = urlsplit(value if "://" in value else f"http://{value}")
            return Proxy(variable, found.hostname or value, found.port or 80)
        except ValueError:
            return Proxy(variable, value, 0)
    return None


def fault(address: str, *, ca: bytes, certificate: bytes) -> str | None:
    """What keeps a device from a TLS connection to its coordinator; None where nothing does.

    Args:
        address: ``HOST:PORT``.
        ca: certificate of the pinned authority, PEM.
        certificate: the device's own, PEM.
    """
    host, port = host_and_port(address, "HOST:PORT")
    now = dt.datetime.now(dt.UTC)
    own = x509.load_pem_x509_certificate(certificate)
    if now < own.not_valid_before_utc:
        return _clock(now, "this device's own certificate starts", own.not_valid_before_utc)
    proxy = proxy_for(host)
    try:
        with _connected(host, port, proxy) as line:
            found = _certificate_of(line, host)
    except ssl.SSLError as error:
        return (
            f"{address}: what answers there speaks no TLS ({error.reason or error}): is it the "
            f"coordinator's port?{_through(proxy)}"
        )
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        return (
            f"{address}: not reached: {reason}; check the address, that the coordinator runs, and "
            f"that this network allows connections to it{_through(proxy)}"
        )
    return _fault_of(found, x509.load_pem_x509_certificate(ca), host, now, proxy) or _expired(
        own, now
    )


def admitted(credentials: Credentials) -> tuple[bool, str]:
    """Whether the coordinator admits this device now, by one call over mutual TLS.

    Returns:
        Whether it does, and one line that says so or why not.
    """
    address = credentials.coordinator
    key, certificate = credentials.tls()
    why = fault(address, ca=credentials.ca, certificate=certificate)
    if why is not None:
        return False, why
    try:
        with open_channel(address, ca=credentials.ca, key=key, certificate=certificate) as channel:
            check = channel.unary_unary(
                method(FLEET, "Check"),
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=fleet_pb2.CheckReply.FromString,
            )
            reply = check(fleet_pb2.Nothing(), timeout=_CALL_SECONDS)
    except grpc.RpcError as error:
        said = printable(error.details())
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return False, f"{address}: the coordinator refuses this device: {said}"
        return False, (
            f"{address}: its certificate is right, but the call failed "
            f"({error.code().name.lower()}: {said})"
        )
    skew = reply.now - dt.datetime.now(dt.UTC).timestamp()
    if abs(skew) > _MOST_SKEW:
        way = "behind" if skew > 0 else "ahead of"
        return False, f"this device's clock is {abs(skew):.0f} s {way} the coordinator's: set it"
    through = proxy_for(host_and_port(address, "HOST:PORT")[0])
    way = "" if through is None else f", through {through}"
    return True, f"{address} admits this device over mutual TLS{way}"


def _connected(host: str, port: int, proxy: Proxy | None) -> socket.socket:
    if proxy is None:
        return socket.create_connection((host, port), timeout=_SECONDS)
    line = socket.create_connection((proxy.host, proxy.port), timeout=_SECONDS)
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        line.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 65_536:
            piece = line.recv(1)  # not a byte beyond the head, which is followed by TLS
            if not piece:
                break
            head += piece
        status = head.partition(b"\r\n")[0].decode("latin-1")
        if not re.match(r"HTTP/1\.[01] 200\b", status):
            raise OSError(0, f"it answered {printable(status, 80)!r} to CONNECT")
    except BaseException:
        line.close()
        raise
    return line


def _certificate_of(line: socket.socket, host: str) -> x509.Certificate:
    """The certificate that answers; nothing is trusted here, and nothing else is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(line, server_hostname=host) as secure:
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def _fault_of(
    found: x509.Certificate,
    ca: x509.Certificate,
    host: str,
    now: dt.datetime,
    proxy: Proxy | None,
) -> str | None:
    try:
        found.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return (
            f"{host}: answers with a certificate of another authority than this device pinned: it "
            f"is another coordinator, or something in between opens TLS{_through(proxy)}"
        )
    if now < found.not_valid_before_utc:
        return _clock(now, "the coordinator's certificate starts", found.not_valid_before_utc)
    if now > found.not_valid_after_utc:
        return (
            f"the coordinator's certificate expired on {found.not_valid_after_utc:%Y-%m-%d %H:%M} "
            f"UTC, and this device's clock says {now:%Y-%m-%d %H:%M}: set the clock, or have the "
            f"operator run `fedsys coordinator rotate`"
        )
    names = _names(found)
    if not _names_host(names, host):
        return (
            f"{host}: the coordinator's certificate names {', '.join(names) or 'nobody'}, not this "
            f"host: use one of these (`fedsys agent set-address`), or have the operator add it to "
            f"hosts in coordinator.toml and run `fedsys coordinator rotate`"
        )
    return None


def _expired(own: x509.Certificate, now: dt.datetime) -> str | None:
    if now <= own.not_valid_after_utc:
        return None
    return (
        f"this device's certificate, or its token, expired on "
        f"{own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and its clock says "
        f"{now:%Y-%m-%d %H:%M}: set the clock, or leave and join again"
    )


def _clock(now: dt.datetime, what: str, starts: dt.datetime) -> str:
    return (
        f"this device's clock says {now:%Y-%m-%d %H:%M} UTC; {what} at {starts:%Y-%m-%d %H:%M}: "
        f"set the clock"
    )


def _through(proxy: Proxy | None) -> str:
    return "" if proxy is None else f"; the way leads through {proxy}; no_proxy spares it"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def _names_host(names: list[str], host: str) -> bool:
    try:
        return str(ipaddress.ip_address(host)) in names
    except ValueError:
        pass
    wanted = host.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    for name in names:
        known = name.lower().rstrip(".")
        if known == wanted or (known.startswith("*.") and known[2:] == parent):
            return True
    return False
