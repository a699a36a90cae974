"""What privacy costs, and the noise that pays for it: mechanisms, accounting, calibration, ledger.

Each name's module is loaded on first use, so that signing a ledger does not import SciPy.

>>> from fedsys.privacy import ViewAccountant, make_plan
>>> plan = make_plan(mechanism="distributed-gaussian", population=1000, expected_cohort=50,
...     rounds=200, dimension=60_000, clip=1.0, delta=1e-5, noise_multiplier=1.0)
>>> mechanism = plan.build_mechanism()
>>> accountant = ViewAccountant(plan)
"""

from typing import TYPE_CHECKING

from fedsys.lazy_names import on_use

if TYPE_CHECKING:
    from fedsys.privacy.accounting.accountant import ViewAccountant
    from fedsys.privacy.accounting.from_ledger import (
        charge_rounds,
        events_of,
        ledger_header,
        plan_of,
        replay,
    )
    from fedsys.privacy.calibration import calibrate, guaranteed_epsilon, planned_outsider
    from fedsys.privacy.encoding.adaptive import AdaptiveClipping, default_bit_fraction
    from fedsys.privacy.encoding.encoded import Encoded
    from fedsys.privacy.encoding.rings import from_ring, ring_dtype, to_ring
    from fedsys.privacy.events import Event, Sampling, event_from_json
    from fedsys.privacy.ledger import Ledger, LedgerView, Signer, load_public_key, read_ledger
    from fedsys.privacy.mechanisms import (
        MECHANISMS,
        Mechanism,
        add_noise,
        build_mechanism,
        mechanism_for,
    )
    from fedsys.privacy.plan import PrivacyPlan
    from fedsys.privacy.planning import make_plan
    from fedsys.privacy.randomness import AesCtrStream, Entropy
    from fedsys.privacy.sampling.aborts import (
        AbortBounds,
        abort_delta,
        choose_cap_and_min_survivors,
    )
    from fedsys.privacy.sampling.cohorts import (
        MinSeparation,
        cyclic_group,
        fixed_cohort,
        poisson_cohort,
        secret_coin,
    )
    from fedsys.privacy.views import VIEWS, Epsilons, View

__all__ = [
    "MECHANISMS",
    "VIEWS",
    "AbortBounds",
    "AdaptiveClipping",
    "AesCtrStream",
    "Encoded",
    "Entropy",
    "Epsilons",
    "Event",
    "Ledger",
    "LedgerView",
    "Mechanism",
    "MinSeparation",
    "PrivacyPlan",
    "Sampling",
    "Signer",
    "View",
    "ViewAccountant",
    "abort_delta",
    "add_noise",
    "build_mechanism",
    "calibrate",
    "charge_rounds",
    "choose_cap_and_min_survivors",
    "cyclic_group",
    "default_bit_fraction",
    "event_from_json",
    "events_of",
    "fixed_cohort",
    "from_ring",
    "guaranteed_epsilon",
    "ledger_header",
    "load_public_key",
    "make_plan",
    "mechanism_for",
    "plan_of",
    "planned_outsider",
    "poisson_cohort",
    "read_ledger",
    "replay",
    "ring_dtype",
    "secret_coin",
    "to_ring",
]

_NAMES = {
    "sampling.aborts": ("AbortBounds", "abort_delta", "choose_cap_and_min_survivors"),
    "accounting.accountant": ("ViewAccountant",),
    "encoding.adaptive": ("AdaptiveClipping", "default_bit_fraction"),
    "calibration": ("calibrate", "guaranteed_epsilon", "planned_outsider"),
    "accounting.from_ledger": ("charge_rounds", "events_of", "ledger_header", "plan_of", "replay"),
    "sampling.cohorts": (
        "MinSeparation",
        "cyclic_group",
        "fixed_cohort",
        "poisson_cohort",
        "secret_coin",
    ),
    "events": ("Event", "Sampling", "event_from_json"),
    "ledger": ("Ledger", "LedgerView", "Signer", "load_public_key", "read_ledger"),
    "mechanisms": (
        "MECHANISMS",
        "Mechanism",
        "add_noise",
        "build_mechanism",
        "mechanism_for",
    ),
    "plan": ("PrivacyPlan",),
    "planning": ("make_plan",),
    "randomness": ("AesCtrStream", "Entropy"),
    "encoding.encoded": ("Encoded",),
    "encoding.rings": ("from_ring", "ring_dtype", "to_ring"),
    "views": ("VIEWS", "Epsilons", "View"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_use(__name__, _NAMES)
