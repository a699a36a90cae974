from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Up(_message.Message):
    __slots__ = ("hello", "consent", "refusal", "answer", "countersignature", "prekeys", "trained", "roster")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    COUNTERSIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    consent: Consent
    refusal: Refusal
    answer: Answer
    countersignature: Countersignature
    prekeys: Prekeys
    trained: Trained
    roster: RosterNews
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., consent: _Optional[_Union[Consent, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., countersignature: _Optional[_Union[Countersignature, _Mapping]] = ..., prekeys: _Optional[_Union[Prekeys, _Mapping]] = ..., trained: _Optional[_Union[Trained, _Mapping]] = ..., roster: _Optional[_Union[RosterNews, _Mapping]] = ...) -> None: ...

class Down(_message.Message):
    __slots__ = ("welcome", "roster", "offer", "invitation", "stage", "outcome", "goodbye", "model", "begin", "collect", "discard", "lines", "roster_wanted", "notice")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_WANTED_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    roster: RosterNews
    offer: Offer
    invitation: Invitation
    stage: Stage
    outcome: Outcome
    goodbye: Goodbye
    model: Model
    begin: Begin
    collect: Collect
    discard: Discard
    lines: Lines
    roster_wanted: RosterWanted
    notice: Notice
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., roster: _Optional[_Union[RosterNews, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., invitation: _Optional[_Union[Invitation, _Mapping]] = ..., stage: _Optional[_Union[Stage, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., collect: _Optional[_Union[Collect, _Mapping]] = ..., discard: _Optional[_Union[Discard, _Mapping]] = ..., lines: _Optional[_Union[Lines, _Mapping]] = ..., roster_wanted: _Optional[_Union[RosterWanted, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "node", "version", "roster_version", "prekeys", "roster_hash", "instance", "jobs")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    node: int
    version: str
    roster_version: int
    prekeys: _containers.RepeatedScalarFieldContainer[bytes]
    roster_hash: bytes
    instance: bytes
    jobs: _containers.RepeatedCompositeFieldContainer[Spent]
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., node: _Optional[int] = ..., version: _Optional[str] = ..., roster_version: _Optional[int] = ..., prekeys: _Optional[_Iterable[bytes]] = ..., roster_hash: _Optional[bytes] = ..., instance: _Optional[bytes] = ..., jobs: _Optional[_Iterable[_Union[Spent, _Mapping]]] = ...) -> None: ...

class Spent(_message.Message):
    __slots__ = ("job", "round", "promised")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    promised: float
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., promised: _Optional[float] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "roster")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    roster: _containers.RepeatedCompositeFieldContainer[SignedRoster]
    def __init__(self, protocol: _Optional[int] = ..., roster: _Optional[_Iterable[_Union[SignedRoster, _Mapping]]] = ...) -> None: ...

class RosterWanted(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class RosterNews(_message.Message):
    __slots__ = ("roster",)
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    roster: _containers.RepeatedCompositeFieldContainer[SignedRoster]
    def __init__(self, roster: _Optional[_Iterable[_Union[SignedRoster, _Mapping]]] = ...) -> None: ...

class SignedRoster(_message.Message):
    __slots__ = ("statement", "signature")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    signature: bytes
    def __init__(self, statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("terms", "prekeys")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    terms: bytes
    prekeys: int
    def __init__(self, terms: _Optional[bytes] = ..., prekeys: _Optional[int] = ...) -> None: ...

class Consent(_message.Message):
    __slots__ = ("job", "terms", "prekeys", "training", "lines")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    terms: bytes
    prekeys: _containers.RepeatedScalarFieldContainer[bytes]
    training: Trained
    lines: int
    def __init__(self, job: _Optional[bytes] = ..., terms: _Optional[bytes] = ..., prekeys: _Optional[_Iterable[bytes]] = ..., training: _Optional[_Union[Trained, _Mapping]] = ..., lines: _Optional[int] = ...) -> None: ...

class Prekeys(_message.Message):
    __slots__ = ("prekeys",)
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    prekeys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, prekeys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("job", "round", "reason", "passing", "cause")
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Cause]
        PAUSED: _ClassVar[Refusal.Cause]
        CONDITIONS: _ClassVar[Refusal.Cause]
        TASK: _ClassVar[Refusal.Cause]
        COHORT: _ClassVar[Refusal.Cause]
        MECHANISM: _ClassVar[Refusal.Cause]
        EPSILON: _ClassVar[Refusal.Cause]
        PARTICIPATION: _ClassVar[Refusal.Cause]
        ROSTER: _ClassVar[Refusal.Cause]
        TERMS: _ClassVar[Refusal.Cause]
        TRAINING: _ClassVar[Refusal.Cause]
        SECURE_AGGREGATION: _ClassVar[Refusal.Cause]
        PROTOCOL: _ClassVar[Refusal.Cause]
        DEVICE: _ClassVar[Refusal.Cause]
        STALE: _ClassVar[Refusal.Cause]
        WITNESSES: _ClassVar[Refusal.Cause]
        QUESTION: _ClassVar[Refusal.Cause]
        LEDGER: _ClassVar[Refusal.Cause]
    UNSPECIFIED: Refusal.Cause
    PAUSED: Refusal.Cause
    CONDITIONS: Refusal.Cause
    TASK: Refusal.Cause
    COHORT: Refusal.Cause
    MECHANISM: Refusal.Cause
    EPSILON: Refusal.Cause
    PARTICIPATION: Refusal.Cause
    ROSTER: Refusal.Cause
    TERMS: Refusal.Cause
    TRAINING: Refusal.Cause
    SECURE_AGGREGATION: Refusal.Cause
    PROTOCOL: Refusal.Cause
    DEVICE: Refusal.Cause
    STALE: Refusal.Cause
    WITNESSES: Refusal.Cause
    QUESTION: Refusal.Cause
    LEDGER: Refusal.Cause
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PASSING_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    reason: str
    passing: bool
    cause: Refusal.Cause
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ..., passing: _Optional[bool] = ..., cause: _Optional[_Union[Refusal.Cause, str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("job", "round", "weights")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    weights: bytes
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., weights: _Optional[bytes] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("job", "round", "assignment", "params", "stage", "version", "reservation", "proof")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    assignment: bytes
    params: bytes
    stage: Stage
    version: int
    reservation: bytes
    proof: bytes
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., assignment: _Optional[bytes] = ..., params: _Optional[bytes] = ..., stage: _Optional[_Union[Stage, _Mapping]] = ..., version: _Optional[int] = ..., reservation: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("job", "round", "step", "message", "milliseconds")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    step: int
    message: bytes
    milliseconds: int
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., message: _Optional[bytes] = ..., milliseconds: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("job", "round", "step", "message", "nonce")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    step: int
    message: bytes
    nonce: bytes
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., message: _Optional[bytes] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Lines(_message.Message):
    __slots__ = ("job", "lines")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    lines: bytes
    def __init__(self, job: _Optional[bytes] = ..., lines: _Optional[bytes] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("job", "round", "committed", "ledger_head", "prekeys", "version", "over")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    committed: bool
    ledger_head: bytes
    prekeys: int
    version: int
    over: bool
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., committed: _Optional[bool] = ..., ledger_head: _Optional[bytes] = ..., prekeys: _Optional[int] = ..., version: _Optional[int] = ..., over: _Optional[bool] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("job", "round", "version", "milliseconds")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    version: int
    milliseconds: int
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., milliseconds: _Optional[int] = ...) -> None: ...

class Trained(_message.Message):
    __slots__ = ("job", "round", "version", "done")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    version: int
    done: bool
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class Collect(_message.Message):
    __slots__ = ("version", "staleness", "stage")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    version: int
    staleness: int
    stage: Stage
    def __init__(self, version: _Optional[int] = ..., staleness: _Optional[int] = ..., stage: _Optional[_Union[Stage, _Mapping]] = ...) -> None: ...

class Discard(_message.Message):
    __slots__ = ("job", "round", "cause")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    round: int
    cause: Refusal.Cause
    def __init__(self, job: _Optional[bytes] = ..., round: _Optional[int] = ..., cause: _Optional[_Union[Refusal.Cause, str]] = ...) -> None: ...

class Countersignature(_message.Message):
    __slots__ = ("job", "terms", "round", "ledger_head", "previous", "weights", "uploaded", "nonce", "invitations", "uploads", "signature", "prekeys")
    JOB_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INVITATIONS_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PREKEYS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    terms: bytes
    round: int
    ledger_head: bytes
    previous: bytes
    weights: bytes
    uploaded: bool
    nonce: bytes
    invitations: int
    uploads: int
    signature: bytes
    prekeys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, job: _Optional[bytes] = ..., terms: _Optional[bytes] = ..., round: _Optional[int] = ..., ledger_head: _Optional[bytes] = ..., previous: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., uploaded: _Optional[bool] = ..., nonce: _Optional[bytes] = ..., invitations: _Optional[int] = ..., uploads: _Optional[int] = ..., signature: _Optional[bytes] = ..., prekeys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "text")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Goodbye.Reason]
        SHUTTING_DOWN: _ClassVar[Goodbye.Reason]
        OUTDATED: _ClassVar[Goodbye.Reason]
        REVOKED: _ClassVar[Goodbye.Reason]
        REPLACED: _ClassVar[Goodbye.Reason]
        MISBEHAVED: _ClassVar[Goodbye.Reason]
        DUPLICATE: _ClassVar[Goodbye.Reason]
    UNSPECIFIED: Goodbye.Reason
    SHUTTING_DOWN: Goodbye.Reason
    OUTDATED: Goodbye.Reason
    REVOKED: Goodbye.Reason
    REPLACED: Goodbye.Reason
    MISBEHAVED: Goodbye.Reason
    DUPLICATE: Goodbye.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    reason: Goodbye.Reason
    text: str
    def __init__(self, reason: _Optional[_Union[Goodbye.Reason, str]] = ..., text: _Optional[str] = ...) -> None: ...

class JoinToken(_message.Message):
    __slots__ = ("ca", "certificate", "private_key", "roster_key", "checksum")
    CA_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    ROSTER_KEY_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    ca: bytes
    certificate: bytes
    private_key: bytes
    roster_key: bytes
    checksum: bytes
    def __init__(self, ca: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., private_key: _Optional[bytes] = ..., roster_key: _Optional[bytes] = ..., checksum: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("csr", "identity", "proof")
    CSR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    identity: bytes
    proof: bytes
    def __init__(self, csr: _Optional[bytes] = ..., identity: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class EnrollReply(_message.Message):
    __slots__ = ("node", "name", "certificate", "roster", "signer")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    node: int
    name: str
    certificate: bytes
    roster: _containers.RepeatedCompositeFieldContainer[SignedRoster]
    signer: bytes
    def __init__(self, node: _Optional[int] = ..., name: _Optional[str] = ..., certificate: _Optional[bytes] = ..., roster: _Optional[_Iterable[_Union[SignedRoster, _Mapping]]] = ..., signer: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr", "proof")
    CSR_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    proof: bytes
    def __init__(self, csr: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class CheckReply(_message.Message):
    __slots__ = ("now", "roster_version")
    NOW_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    now: float
    roster_version: int
    def __init__(self, now: _Optional[float] = ..., roster_version: _Optional[int] = ...) -> None: ...

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("config", "start")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    config: str
    start: str
    def __init__(self, config: _Optional[str] = ..., start: _Optional[str] = ...) -> None: ...

class JobName(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("id", "name", "status", "reason", "round", "rounds", "stage", "epsilon", "budget", "metrics", "refusals", "consenting", "population", "sequence")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    CONSENTING_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    status: str
    reason: str
    round: int
    rounds: int
    stage: str
    epsilon: float
    budget: float
    metrics: _containers.ScalarMap[str, float]
    refusals: _containers.RepeatedScalarFieldContainer[str]
    consenting: int
    population: int
    sequence: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., stage: _Optional[str] = ..., epsilon: _Optional[float] = ..., budget: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., refusals: _Optional[_Iterable[str]] = ..., consenting: _Optional[int] = ..., population: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class JobList(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobStatus]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobStatus, _Mapping]]] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("id", "name", "status", "connected", "version", "expires", "warning", "labels")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    status: str
    connected: bool
    version: str
    expires: int
    warning: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., connected: _Optional[bool] = ..., version: _Optional[str] = ..., expires: _Optional[int] = ..., warning: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class FleetStatus(_message.Message):
    __slots__ = ("nodes", "roster_version", "budget", "spent", "held")
    NODES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    roster_version: int
    budget: float
    spent: float
    held: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., roster_version: _Optional[int] = ..., budget: _Optional[float] = ..., spent: _Optional[float] = ..., held: _Optional[_Iterable[str]] = ...) -> None: ...
