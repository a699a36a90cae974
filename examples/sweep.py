"""Accuracy against privacy: the same job at three epsilons, as a table and a picture.

    python examples/sweep.py

Writes ``runs/sweep-*`` and ``sweep.png`` into the current folder.
"""

from __future__ import annotations

import fedsys

EPSILONS = (2, 4, 8)


def main() -> None:
    """Runs, prints and draws."""
    runs = {
        f"epsilon {epsilon}": fedsys.simulate(
            "quickstart",
            {
                "job.name": f"sweep-{epsilon}",
                "rounds.count": 10,
                "aggregation.protocol": "ideal",
                "privacy.epsilon": epsilon,
            },
        )
        for epsilon in EPSILONS
    }
    comparison = fedsys.compare(runs)
    for row in comparison:
        print(f"{row['run']}: accuracy {row['accuracy']:.3f}, spent {row['epsilon_outsider']:.2f}")
    comparison.plot("accuracy").savefig("sweep.png")
    together = comparison.together().curve[-1].spent.outsider
    print(f"all runs together, for a client that was in each: epsilon {together:.2f}")


if __name__ == "__main__":
    main()
