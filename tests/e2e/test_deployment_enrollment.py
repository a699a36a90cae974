"""Who gets in at the devices' port, and who is refused."""

from __future__ import annotations

import datetime as dt
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2

from client.enrollment import join, leave, renew
from client.grpc_channel import CHANNEL_OPTIONS, call, open_channel
from client.identity import Credentials, TlsKey, pem_of
from fedsys.errors import ConfigError, EnrollmentError, FedsysError, ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.frames import Frame, split
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.services import FLEET, OPERATOR, PROTOCOL, method
from fedsys.wire.token import JoinToken, enrollment_proof
from server.grpc_host import SERVER_OPTIONS
from server.home.folder import Home
from server.home.pki import AGENT_DAYS, Authority, Peer, pem
from server.home.state import CertificateRow
from tests.e2e.deployment import Port, running_port


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with running_port(tmp_path / "coordinator") as running:
        yield running


def channel_of(credentials: Credentials) -> grpc.Channel:
    key, certificate = credentials.tls()
    return open_channel(
        credentials.coordinator, ca=credentials.ca, key=key, certificate=certificate
    )


def converse(channel: grpc.Channel, frames: list[bytes]) -> list[fleet_pb2.Down]:
    """Send these frames in one session and read to its end."""
    stub = channel.stream_stream(method(FLEET, "Session"))
    return [_down(frame) for frame in stub(iter(frames), timeout=10)]


def _down(frame: bytes) -> fleet_pb2.Down:
    """A message that fits into one frame."""
    found: fleet_pb2.Down = fleet_pb2.Down.FromString(Frame.decode(frame).data)
    return found


def hello(node: int, *, protocol: int = PROTOCOL) -> list[bytes]:
    greeting = fleet_pb2.Hello(protocol_min=protocol, protocol_max=protocol, node=node)
    return list(split(0, fleet_pb2.Up(hello=greeting).SerializeToString()))


def test_a_device_joins_and_is_greeted(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("ward-1", tmp_path / "agent")
    assert Credentials.load(tmp_path / "agent").node == credentials.node == 1
    assert (tmp_path / "agent" / "identity.ed25519").stat().st_mode & 0o077 == 0
    assert (tmp_path / "agent" / "tls.pem").stat().st_mode & 0o077 == 0
    assert (newest := credentials.roster_chain().newest) is not None
    assert newest.members == {1: credentials.identity.public_bytes}
    with channel_of(credentials) as channel:
        answers = converse(channel, hello(credentials.node))
    assert answers[0].welcome.protocol == PROTOCOL
    assert len(answers[0].welcome.roster) == 1


def test_health_is_served(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    with channel_of(credentials) as channel:
        reply = call(
            channel,
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(service=FLEET),
            health_pb2.HealthCheckResponse.FromString,
        )
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_an_interrupted_join_may_be_repeated_by_the_same_device(
    port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = port.registry.issue_token("a")

    def crash(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Credentials, "store_tls", crash)
        with pytest.raises(KeyboardInterrupt):
            join(port.address, token, tmp_path / "a")
    credentials = join(port.address, token, tmp_path / "a")
    assert credentials.node == 1
    assert len(port.state.nodes()) == 1


def test_a_replayed_token_is_refused(port: Port, tmp_path: Path) -> None:
    token = port.registry.issue_token("a")
    join(port.address, token, tmp_path / "a")
    with pytest.raises(EnrollmentError, match="used already"):
        join(port.address, token, tmp_path / "thief")
    assert len(port.state.nodes()) == 1


def test_an_expired_token_is_refused(port: Port, tmp_path: Path) -> None:
    token = port.registry.issue_token("a", hours=1e-6)
    with pytest.raises(FedsysError, match=r"expired"):
        join(port.address, token, tmp_path / "a")


def test_a_damaged_token_is_one_line(port: Port) -> None:
    text = port.registry.issue_token("a").encode()
    assert JoinToken.decode(text) == JoinToken.decode(f"  {text}\n")
    changed = "y" if text[40] == "x" else "x"
    for wrong in (text[:-3], text[:40] + changed + text[41:], "hello", ""):
        with pytest.raises(ConfigError, match="damaged or incomplete"):
            JoinToken.decode(wrong)
    assert text not in repr(JoinToken.decode(text))


def test_no_certificate_is_refused(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    anonymous = grpc.ssl_channel_credentials(root_certificates=credentials.ca)
    with (
        grpc.secure_channel(port.address, anonymous) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_plain_text_is_refused(port: Port) -> None:
    with (
        grpc.insecure_channel(port.address) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_another_authoritys_certificate_is_refused(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    (tmp_path / "other").mkdir()
    other, key = Authority.create(tmp_path / "other"), TlsKey.generate()
    certificate = pem(other.issue_agent(key.csr, node=1))
    with (
        open_channel(
            port.address, ca=credentials.ca, key=key.pem, certificate=certificate
        ) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_another_authoritys_server_is_refused(port: Port, tmp_path: Path) -> None:
    token = port.registry.issue_token("a")
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other")
    forged = JoinToken(
        ca=other.der,
        certificate=token.certificate,
        private_key=token.private_key,
        roster_key=token.roster_key,
    )
    with pytest.raises(ConfigError, match="not reached"):
        join(port.address, forged, tmp_path / "a")


def test_an_expired_certificate_is_refused(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    key, long_ago = TlsKey.generate(), dt.datetime.now(dt.UTC) - dt.timedelta(days=200)
    stale = pem(port.home.authority.issue_agent(key.csr, node=1, now=long_ago))
    with (
        open_channel(port.address, ca=credentials.ca, key=key.pem, certificate=stale) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_was_never_given_out_is_refused(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    key = TlsKey.generate()
    stray = pem(port.home.authority.issue_agent(key.csr, node=1))
    with (
        open_channel(port.address, ca=credentials.ca, key=key.pem, certificate=stray) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_revoked_certificate_is_refused(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    port.registry.revoke("a")
    with channel_of(credentials) as channel, pytest.raises(grpc.RpcError) as refusal:
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "revoked" in refusal.value.details()
    newest = port.registry.chain().newest
    assert newest is not None
    assert newest.members == {}


def test_revocation_ends_an_open_session(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    stub_frames = iter_forever(hello(1))
    with channel_of(credentials) as channel:
        stub = channel.stream_stream(method(FLEET, "Session"))
        stream = stub(stub_frames, timeout=20)
        next(stream)
        port.registry.revoke("a")
        assert port.host is not None
        port.run(port.host.evict())
        last = [_down(frame) for frame in stream][-1]
    assert last.goodbye.reason == fleet_pb2.Goodbye.REVOKED


def iter_forever(
    frames: list[bytes], end: threading.Event | None = None, *, seconds: float = 5
) -> Iterator[bytes]:
    """Frames, then a stream that stays open for as long as the test needs it."""
    yield from frames
    (end or threading.Event()).wait(seconds)


def test_another_agents_id_is_refused(port: Port, tmp_path: Path) -> None:
    port.enroll("a", tmp_path / "a")
    second = port.enroll("b", tmp_path / "b")
    with channel_of(second) as channel:
        last = converse(channel, hello(1))[-1]
    assert last.goodbye.reason == fleet_pb2.Goodbye.MISBEHAVED
    assert "certificate of node 2" in last.goodbye.text


def test_an_enrol_only_credential_opens_no_session(port: Port, tmp_path: Path) -> None:
    token = port.registry.issue_token("a")
    with (
        open_channel(
            port.address,
            ca=pem_of(token.ca),
            key=TlsKey.of_scalar(token.private_key).pem,
            certificate=pem_of(token.certificate),
        ) as channel,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        converse(channel, hello(1))
    assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_an_operators_call_on_the_devices_port_is_unknown(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    with channel_of(credentials) as channel, pytest.raises(ConfigError, match="unimplemented"):
        call(
            channel,
            method(OPERATOR, "List"),
            fleet_pb2.Nothing(),
            fleet_pb2.JobList.FromString,
        )


def test_an_oversized_message_ends_the_session(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    huge = Frame(parcel=1, size=1 << 40, offset=0, crc32=0, data=b"x").encode()
    with channel_of(credentials) as channel:
        last = converse(channel, [*hello(1), huge])[-1]
    assert last.goodbye.reason == fleet_pb2.Goodbye.MISBEHAVED
    assert "at most" in last.goodbye.text


def test_an_oversized_frame_is_refused_by_the_transport(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    key, certificate = credentials.tls()
    unlimited = grpc.secure_channel(
        port.address,
        grpc.ssl_channel_credentials(credentials.ca, key, certificate),
        options=[("grpc.max_send_message_length", -1)],
    )
    big = Frame(parcel=0, size=5 << 20, offset=0, crc32=0, data=bytes(5 << 20)).encode()
    with unlimited, pytest.raises(grpc.RpcError) as refusal:
        converse(unlimited, [big])
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_old_agent_is_told(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    with channel_of(credentials) as channel:
        last = converse(channel, hello(1, protocol=0))[-1]
    assert last.goodbye.reason == fleet_pb2.Goodbye.OUTDATED
    assert "update" in last.goodbye.text


def test_a_session_ends_as_soon_as_its_last_message_is_written(
    port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.grpc_host._PARTING_SECONDS", 600.0)
    credentials = port.enroll("a", tmp_path / "a")
    with channel_of(credentials) as channel:
        converse(channel, hello(1))  # its deadline, 10 s, ends the call otherwise


def test_a_certificate_is_renewed_under_a_new_key(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    before = credentials.tls()
    with channel_of(credentials) as channel:
        renew(credentials, channel)
    after = credentials.tls()
    assert before[0] != after[0]
    assert before[1] != after[1]
    with channel_of(credentials) as channel:
        assert converse(channel, hello(1))[0].welcome.protocol == PROTOCOL


def test_a_flood_of_renewals_is_refused_before_anything_is_written(
    port: Port, tmp_path: Path
) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    for _ in range(3):
        with channel_of(credentials) as channel:
            renew(credentials, channel)
    for _ in range(5):
        with (
            channel_of(credentials) as channel,
            pytest.raises(EnrollmentError, match="4 certificates within a day"),
        ):
            renew(credentials, channel)
    with port.state.transaction() as session:
        assert session.query(CertificateRow).count() == 4


def test_renewals_go_on_a_day_later_and_what_expired_is_forgotten(
    port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    peer, now, day = Peer.of(credentials.tls()[1]), time.time(), 86_400.0

    def renewed(after: float) -> bytes:
        monkeypatch.setattr(port.registry, "_clock", lambda: now + after)
        csr = TlsKey.generate().csr
        proof = credentials.identity.sign(enrollment_proof(peer.der, csr))
        return port.registry.renew(peer, csr=csr, proof=proof)

    for second in range(3):
        renewed(second)
    with pytest.raises(EnrollmentError, match="within a day; try again tomorrow"):
        renewed(10.0)
    peer = Peer.of(pem_of(renewed(day + 10)))
    peer = Peer.of(pem_of(renewed((AGENT_DAYS + 0.5) * day)))
    with port.state.transaction() as session:
        assert session.query(CertificateRow).count() == 2


def test_a_flood_of_calls_is_refused_and_another_device_is_served(
    port: Port, tmp_path: Path
) -> None:
    credentials, other = port.enroll("a", tmp_path / "a"), port.enroll("b", tmp_path / "b")
    codes = []
    with channel_of(credentials) as channel:
        for _ in range(80):
            with pytest.raises(FedsysError) as refusal:
                call(
                    channel,
                    method(FLEET, "Renew"),
                    fleet_pb2.RenewRequest(csr=bytes(5000)),
                    fleet_pb2.RenewReply.FromString,
                )
            codes.append("too often" in str(refusal.value))
    assert codes[0] is False
    assert codes[-1] is True
    with channel_of(other) as channel:
        assert converse(channel, hello(other.node))[0].welcome.protocol == PROTOCOL


def test_two_byte_frames_end_the_session(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    crc32 = zlib.crc32(b"\x22x")
    piece = Frame(parcel=1, size=60_000, offset=0, crc32=crc32, data=b"\x22x")
    with channel_of(credentials) as channel:
        answers = converse(channel, [*hello(credentials.node), piece.encode()])
    assert answers[-1].goodbye.reason == fleet_pb2.Goodbye.MISBEHAVED
    assert "at least 16384" in answers[-1].goodbye.text


def test_a_device_leaves(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    leave(credentials)
    assert [row.status for row in port.state.nodes()] == ["revoked"]


def test_the_rosters_authority_may_be_somebody_else(tmp_path: Path) -> None:
    authority = Ed25519PrivateKey.generate()
    public = authority.public_key().public_bytes_raw()
    with running_port(tmp_path / "coordinator", roster_key=public) as port:
        assert not port.home.operator_signs_roster
        credentials = port.enroll("a", tmp_path / "a")
        assert credentials.roster_key == public
        assert [row.status for row in port.state.nodes()] == ["pending"]
        statement = port.registry.propose()
        forged = SignedStatement(
            statement=statement.encoded,
            signature=Ed25519PrivateKey.generate().sign(signed_message(statement.encoded)),
        )
        with pytest.raises(ProtocolError, match="not signed by the pinned authority"):
            port.registry.accept(forged)
        stranger = RosterStatement(
            version=1, previous=b"", members={**statement.members, 9: bytes(32)}
        )
        with pytest.raises(ConfigError, match="never enrolled"):
            port.registry.accept(
                SignedStatement(
                    statement=stranger.encoded,
                    signature=authority.sign(signed_message(stranger.encoded)),
                )
            )
        port.registry.accept(
            SignedStatement(
                statement=statement.encoded,
                signature=authority.sign(signed_message(statement.encoded)),
            )
        )
        assert [row.status for row in port.state.nodes()] == ["active"]


def test_server_certificate_is_renewed_before_it_expires(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    first = home.server_identity()
    assert home.server_identity().certificate == first.certificate
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=350)
    assert home.server_identity(now=later).certificate != first.certificate


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    (home.path / "ca.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        _ = home.authority
    secret = serialization.load_pem_private_key(
        (home.path / "server.key").read_bytes(), password=None
    )
    assert secret is not None


def test_grpc_knows_every_option_by_its_name() -> None:
    """It ignores one that it does not know, without a word."""
    library = Path(cygrpc.__file__).read_bytes()
    for name, _value in (*CHANNEL_OPTIONS, *SERVER_OPTIONS):
        assert name.encode() in library, name


@pytest.mark.slow
def test_an_idle_device_stays_connected(port: Port, tmp_path: Path) -> None:
    credentials, end = port.enroll("a", tmp_path / "a"), threading.Event()
    with channel_of(credentials) as channel:
        stub = channel.stream_stream(method(FLEET, "Session"))
        stream = stub(iter_forever(hello(1), end, seconds=250), timeout=250)
        next(stream)
        time.sleep(180)  # six pings, each of which the server must want
        assert list(port.fleet.links) == [1]
        assert stream.is_active()
        end.set()


def test_a_flood_is_held_back(port: Port, tmp_path: Path) -> None:
    credentials = port.enroll("a", tmp_path / "a")
    answer = fleet_pb2.Up(answer=fleet_pb2.Answer(job=bytes(32), message=bytes(500_000)))
    flood = [
        frame for number in range(1, 61) for frame in split(number, answer.SerializeToString())
    ]
    with channel_of(credentials) as channel:
        stub = channel.stream_stream(method(FLEET, "Session"))
        port.fleet.allow(1 << 20, [1])
        stream = stub(iter_forever([*hello(1), *flood]), timeout=60)
        next(stream)
        for _ in range(1500):
            if port.fleet.links[1].pending:
                break
            time.sleep(0.02)
        time.sleep(1.0)  # nobody takes anything
        assert 0 < port.fleet.links[1].pending < 10, "the session is open, and not read further"
        assert len(flood) >= 60
        stream.cancel()
