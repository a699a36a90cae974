"""Golden vectors of the privacy package: seeded inputs and the integers that must come out.

    python -m tests.vectors.privacy.generate

Another implementation (a torch encoder, an agent in another language) checks itself against
``vectors.json``; floats are given as the hexadecimal text of their exact value.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import (
    AesCtrStream,
    build_mechanism,
    fixed_cohort,
    poisson_cohort,
)
from fedsys.privacy.encoding.clipping import clip_to_integers
from fedsys.privacy.encoding.hadamard import public_signs
from fedsys.privacy.ledger import canonical, commitment
from fedsys.privacy.noise import noise_sampler, rounding_distance
from fedsys.privacy.noise.inversion import FURTHER_BYTES, settle
from fedsys.privacy.noise.table import upper_words

__all__ = ["PATH", "build"]

PATH = Path(__file__).with_name("vectors.json")


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _zeros(count: int) -> bytes:
    return bytes(count)


def _update(dimension: int, norm: float, number: int) -> NDArray[np.float32]:
    """Reproducible without any library's generator: words of an AES-CTR stream."""
    words = AesCtrStream(_key(number)).words(dimension)
    row = (words.astype(np.float64) * 2.0**-63 - 1.0).astype(np.float32)
    scaled: NDArray[np.float32] = row * np.float32(norm / math.sqrt(dimension / 3))
    return scaled


def build() -> dict[str, Any]:
    """All vectors, as JSON holds them."""
    clipping = []
    for number, (dimension, norm, clip) in enumerate(
        [(1, 1.0, 1.0), (7, 0.5, 1.0), (7, 40.0, 1.0), (33, 1.0, 1.0), (33, 3.0, 0.01)]
    ):
        row = _update(dimension, norm, number)
        clipped = clip_to_integers(row[None, :], clip=clip)
        clipping.append(
            {
                "update": [float(x).hex() for x in row],
                "clip": clip,
                "integers": clipped.values[0].tolist(),
                "clipped": bool(clipped.clipped[0]),
            }
        )
    noise = [
        {
            "sigma": sigma,
            "key": _key(9).hex(),
            "draws": noise_sampler(sigma).draw((40,), AesCtrStream(_key(9))).tolist(),
        }
        for sigma in (0.7, 29.0, 89.4625, 1632.0, 40_000.0)
    ]
    table = upper_words(2.5)
    settled = [
        {
            "sigma": sigma,
            "word": f"{word:016x}",
            "further": "00" * FURTHER_BYTES,
            "draw": settle(word, sigma, 0.0, _zeros),  # type: ignore[arg-type]
        }
        for sigma in (2.5, 1632.0)
        for word in (0, 1, int(table[3]), (1 << 64) - 1)
    ]
    distances = [
        {"sigma": sigma, "terms": terms, "at_most": rounding_distance(sigma, terms, terms)}
        for sigma in (1.0, 2.0, 3.0)
        for terms in (2, 10, 100)
    ]
    narrow = build_mechanism(
        "distributed-gaussian",
        dimension=20,
        clip=1.0,
        noise_multiplier=1.0,
        expected_cohort=10.0,
        population=100,
        cap=20,
        min_survivors=1,
        encoding="narrow",
        modulus_bits=14,
    )
    update = _update(20, 2.0, 77)
    encoded = narrow.encode(update[None, :], seed=b"round", entropy=AesCtrStream(_key(5)))
    return {
        "clipping": clipping,
        "noise": noise,
        "noise_table": {"sigma": 2.5, "upper_words": [f"{int(word):016x}" for word in table]},
        "noise_settled": settled,
        "rounding_distances": distances,
        "signs": {"seed": b"round".hex(), "signs": public_signs(16, b"round").astype(int).tolist()},
        "narrow": {
            "event": narrow.event.to_json(),
            "update": [float(x).hex() for x in update],
            "seed": b"round".hex(),
            "entropy_key": _key(5).hex(),
            "values": encoded.values[0].tolist(),
        },
        "cohorts": {
            "key": _key(3).hex(),
            "poisson": {
                "population": 200,
                "rate": 0.1,
                "cohort": poisson_cohort(200, 0.1, AesCtrStream(_key(3))).tolist(),
            },
            "fixed": {
                "population": 50,
                "size": 5,
                "cohort": fixed_cohort(50, 5, AesCtrStream(_key(3))).tolist(),
            },
        },
        "ledger": {
            "value": {"b": [1, 2.5, 1e-05, 1e16, -0.0], "a": "é", "c": None},
            "canonical": canonical({"b": [1, 2.5, 1e-05, 1e16, -0.0], "a": "é", "c": None}).decode(
                "ascii"
            ),
            "salt": _key(1).hex(),
            "name": "sampled",
            "committed": [3, 1437],
            "commitment": commitment("sampled", [3, 1437], _key(1)),
        },
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=1) + "\n", encoding="utf-8")
