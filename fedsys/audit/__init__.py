"""Re-derives every claim of a run from its folder, which is untrusted.

>>> from fedsys.audit import audit_run, to_json
"""

from __future__ import annotations

from fedsys.audit.composition import compose
from fedsys.audit.document import to_json, write
from fedsys.audit.empirical import audit_canaries
from fedsys.audit.rederive import audit_run

__all__ = ["audit_canaries", "audit_run", "compose", "to_json", "write"]
