"""Running privacy losses, one class a view."""

from fedsys.privacy.losses.meetings import Meetings
from fedsys.privacy.losses.outsider import OutsiderLoss
from fedsys.privacy.losses.participant import ParticipantLoss
from fedsys.privacy.losses.server import ServerLoss, worst_server

__all__ = ["Meetings", "OutsiderLoss", "ParticipantLoss", "ServerLoss", "worst_server"]
