"""DP-SGD inside a client: Opacus' clipped gradients, the noise's size, entropy from outside."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from client.training import LocalConfig, Trainer
from client.training.example.privacy import ExamplePrivateTrainer
from client.training.example_privacy import UNITS, ExamplePrivacy, poisson_batch
from fedsys.errors import ConfigError, TrainingError
from fedsys.privacy.noise import RoundedGaussian
from fedsys.privacy.randomness import AesCtrStream
from fedsys.tasks import DataSource, Examples, FederatedData, Task, load, seeded

SILENT = ExamplePrivacy(clip=0.5, noise_multiplier=1e-6, example_rate=1.0, steps=1)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return load("digits").clients(DataSource())


def fixed_entropy(seed: int) -> Callable[[int], bytes]:
    """Reproducible, for tests only."""
    calls = [0]

    def entropy(count: int) -> bytes:
        calls[0] += 1
        return hashlib.shake_256(f"{seed}/{calls[0]}".encode()).digest(count)

    return entropy


def trainer(privacy: ExamplePrivacy, rate: float = 1.0, hidden: int = 6) -> ExamplePrivateTrainer:
    return ExamplePrivateTrainer(
        load("digits", {"hidden": hidden}), LocalConfig(learning_rate=rate), privacy, seed=1
    )


def start(hidden: int = 6) -> NDArray[np.float32]:
    model = load("digits", {"hidden": hidden}).init_model(1)
    parts = [p.detach().numpy().ravel() for p in model.parameters()]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_without_noise_a_step_is_opacus_step(data: FederatedData) -> None:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    task, rows = load("digits", {"hidden": 6}), np.arange(40)
    model = GradSampleModule(task.init_model(1), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=SILENT.clip,
        expected_batch_size=len(rows),
    )
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    task.loss(model(data.train.x[rows]), data.train.y[rows]).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = (after - before).numpy()
    found = trainer(SILENT).train(start(), data.train, [rows], fixed_entropy(1))[0]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_each_example_moves_the_sum_by_at_most_the_clip(data: FederatedData) -> None:
    sharp = replace(SILENT, clip=1e-3)
    one = trainer(sharp).train(start(), data.train, [np.array([5])], fixed_entropy(1))[0]
    norm = float(np.linalg.norm(one.astype(np.float64)))
    assert 0.95e-3 < norm <= 1e-3 * (1 + 1e-6)


def test_the_noise_has_the_promised_size(data: FederatedData) -> None:
    """One step over 4 examples with z = 3: d = 460 coordinates of standard deviation z C / 4."""
    noisy = replace(SILENT, noise_multiplier=3.0)
    quiet = trainer(SILENT).train(start(), data.train, [np.arange(4)], fixed_entropy(1))[0]
    loud = trainer(noisy).train(start(), data.train, [np.arange(4)], fixed_entropy(1))[0]
    scaled = (loud - quiet).astype(np.float64) / (3.0 * 0.5 / 4)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=len(scaled))
    assert low < float((scaled**2).sum()) < high


def test_batches_are_poisson_samples() -> None:
    coins = poisson_batch(AesCtrStream(bytes(32)), 20_000, 0.3)
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], 20_000, 0.3)
    assert low <= int(coins.sum()) <= high
    assert poisson_batch(AesCtrStream(bytes(32)), 7, 1.0).all()


def test_batches_and_noise_follow_the_entropy_alone(data: FederatedData) -> None:
    privacy = ExamplePrivacy(clip=0.5, noise_multiplier=1.0, example_rate=0.5, steps=3)
    rows = [np.arange(30), np.arange(30), np.array([], dtype=np.int64)]
    one = trainer(privacy).train(start(), data.train, rows, fixed_entropy(1))
    same = trainer(privacy).train(start(), data.train, rows, fixed_entropy(1))
    other = trainer(privacy).train(start(), data.train, rows, fixed_entropy(2))
    assert (one == same).all()
    assert (one[0] != other[0]).any()
    assert (one[0] != one[1]).any(), "each client has its own stream"
    assert not one[2].any()


def test_it_learns(data: FederatedData) -> None:
    privacy = ExamplePrivacy(clip=1.0, noise_multiplier=1.0, example_rate=0.2, steps=40)
    weights = start(32)
    private = ExamplePrivateTrainer(
        load("digits", {"hidden": 32}), LocalConfig(learning_rate=2.0), privacy, seed=1
    )
    update = private.train(weights, data.train, [np.arange(1437)], fixed_entropy(3))[0]
    plain = Trainer(load("digits", {"hidden": 32}), LocalConfig())
    assert plain.evaluate(weights + update, data.test)["accuracy"] > 0.7


def test_an_example_that_is_not_finite_counts_as_zero(data: FederatedData) -> None:
    x = data.train.x.clone()
    x[3] = math.nan
    damaged = Examples(x=x, y=data.train.y)
    found = trainer(SILENT).train(start(), damaged, [np.array([2, 3])], fixed_entropy(1))[0]
    alone = trainer(SILENT).train(start(), damaged, [np.array([2])], fixed_entropy(1))[0]
    np.testing.assert_allclose(2 * found, alone, atol=1e-5)


def test_wrong_parameters_and_failing_clients_are_one_clear_line(data: FederatedData) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.clip = 0"):
        replace(SILENT, clip=0)
    with pytest.raises(ConfigError, match=r"example_rate = 1\.5"):
        replace(SILENT, example_rate=1.5)
    with pytest.raises(ConfigError, match="steps = 0"):
        replace(SILENT, steps=0)
    with pytest.raises(TrainingError, match="client ann: example-private training failed"):
        trainer(SILENT).train(
            start(), data.train, [np.array([5000])], fixed_entropy(1), names=["ann"]
        )


class Sequences:
    """A task over (B, T) symbols for whatever model is given: which symbol came first?"""

    name = "sequences"

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return self._make()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}

    def clients(self, source: DataSource) -> FederatedData:
        rows = torch.from_numpy(np.random.default_rng(5).integers(0, 9, (64, 7)).astype(np.uint8))
        examples = Examples(x=rows, y=rows[:, 0].long())
        return FederatedData(train=examples, test=examples)


class Recurrent(nn.Module):
    """Embedding, a recurrent layer, the last state read out."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(9, 24), layer
        self.readout = nn.Linear(width, 9)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(self.embedding(symbols.long()))
        outputs: torch.Tensor = self.readout(states[:, -1])
        return outputs


class Images(Sequences):
    """Noise pictures in 1 x 12 x 12."""

    def clients(self, source: DataSource) -> FederatedData:
        pixels = torch.from_numpy(np.random.default_rng(5).random((64, 1, 12, 12), np.float32))
        examples = Examples(x=pixels, y=torch.arange(64) % 9)
        return FederatedData(train=examples, test=examples)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 9)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 9))


def gru_by_opacus() -> nn.Module:
    from opacus.layers import DPGRU

    return Recurrent(DPGRU(24, 56, batch_first=True), 56)


def flat(model: nn.Module) -> NDArray[np.float32]:
    parts = [p.detach().numpy().ravel() for p in model.parameters()]
    return np.concatenate(parts).astype(np.float32)


def updates(
    task: Task,
    privacy: ExamplePrivacy,
    mode: str | None = None,
    local: LocalConfig | None = None,
    seed: int = 1,
) -> tuple[str | None, NDArray[np.float32]]:
    """The mode, and what one client with all examples sends."""
    pool = task.clients(DataSource()).train
    found = ExamplePrivateTrainer(
        task, local or LocalConfig(learning_rate=1.0), privacy, seed=1, mode=mode
    )
    rows = [np.arange(len(pool.x))]
    update = found.train(flat(task.init_model(1)), pool, rows, fixed_entropy(seed))[0]
    return found.mode, update


def opacus_alone(
    task: Task,
    privacy: ExamplePrivacy,
    optimizer: Callable[..., torch.optim.Optimizer],
    noise: float = 0.0,
) -> NDArray[np.float64]:
    """The same steps by Opacus' plain GradSampleModule and DPOptimizer, batches of everything."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    pool = task.clients(DataSource()).train
    bare = task.init_model(1)
    before = flat(bare).astype(np.float64)
    model = GradSampleModule(bare, loss_reduction="mean")
    steps = DPOptimizer(
        optimizer(model.parameters()),
        noise_multiplier=noise,
        max_grad_norm=privacy.clip,
        expected_batch_size=len(pool.x),
    )
    for _ in range(privacy.steps):
        steps.zero_grad()
        task.loss(model(pool.x), pool.y).mean().backward()  # type: ignore[no-untyped-call]
        steps.step()
    return flat(bare).astype(np.float64) - before


HINTS = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@HINTS
@pytest.mark.parametrize(
    ("task", "mode"),
    [
        (Images(perceptron), "ghost"),
        (Images(convolutions), "ghost"),
        (Sequences(gru_by_opacus), "ghost"),
    ],
    ids=["perceptron", "convolutions", "gru"],
)
def test_ghost_clipping_is_plain_clipping(task: Task, mode: str) -> None:
    """To 1e-6: the sum of all clipped gradients, of which most are longer than the clip."""
    silent = replace(SILENT, clip=0.02)
    chosen, ghost = updates(task, silent)
    assert chosen == mode
    plain = opacus_alone(task, silent, lambda p: torch.optim.SGD(p, lr=1.0))
    assert np.linalg.norm(plain) > 1e-3
    # Both shorten the clip by a hair: norm + 1e-6 there, the lattice's slack and rounding here.
    factor = float(ghost @ plain) / float(plain @ plain)
    assert 1 - 2e-4 - len(plain) ** 0.5 / UNITS < factor <= 1
    np.testing.assert_allclose(ghost / factor, plain, atol=1e-6)


@HINTS
def test_functional_gradients_are_plain_gradients() -> None:
    silent = replace(SILENT, clip=0.02)
    _, found = updates(Images(perceptron), silent, mode="no_op")
    _, ghost = updates(Images(perceptron), silent, mode="ghost")
    np.testing.assert_allclose(found, ghost, atol=3e-6)


@HINTS
def test_given_the_same_noise_a_step_is_opacus_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps with z = 2: Opacus gets the draws that our stream makes."""
    import opacus.optimizers.optimizer as theirs

    task, privacy = Images(perceptron), replace(SILENT, noise_multiplier=2.0, steps=3)
    _, ours = updates(task, privacy)
    stream = AesCtrStream.from_entropy(fixed_entropy(1))
    sampler = RoundedGaussian(float(2.0 * UNITS))

    def same(std: float, reference: torch.Tensor, **_: object) -> torch.Tensor:
        assert std == pytest.approx(2.0 * privacy.clip)
        draws = torch.from_numpy(sampler.draw(tuple(reference.shape), stream))
        return (draws * (privacy.clip / UNITS)).float()

    monkeypatch.setattr(theirs, "_generate_noise", same)
    opacus = opacus_alone(task, privacy, lambda p: torch.optim.SGD(p, lr=1.0), noise=2.0)
    assert np.linalg.norm(opacus) > 1
    np.testing.assert_allclose(ours, opacus, atol=2e-5)


@HINTS
@pytest.mark.parametrize(
    ("local", "optimizer"),
    [
        (
            LocalConfig(learning_rate=0.5, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.01),
        ),
        (
            LocalConfig(optimizer="adam", learning_rate=0.01),
            lambda p: torch.optim.Adam(p, lr=0.01),
        ),
    ],
    ids=["momentum", "adam"],
)
def test_optimizers_are_torchs(
    local: LocalConfig, optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    privacy = replace(SILENT, noise_multiplier=1e-9, steps=4)
    _, ours = updates(Images(perceptron), privacy, local=local)
    plain = opacus_alone(Images(perceptron), privacy, optimizer)
    # Adam divides by the gradient's size, so what is tiny there is amplified.
    far = np.abs(ours - plain) > 1e-3 * np.abs(plain).max()
    assert far.mean() < (0.01 if local.optimizer == "adam" else 1e-9)


def test_the_proximal_term_pulls_back() -> None:
    privacy = replace(SILENT, steps=5)
    _, free = updates(Images(perceptron), privacy)
    _, held = updates(Images(perceptron), privacy, local=LocalConfig(learning_rate=0.5))
    _, tied = updates(
        Images(perceptron), privacy, local=LocalConfig(learning_rate=0.5, proximal_mu=1.0)
    )
    assert np.linalg.norm(tied) < np.linalg.norm(held) < np.linalg.norm(free)


def test_physical_batches_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.training.example.privacy._GHOST_BATCH", 10)
    silent = replace(SILENT, example_rate=0.9, steps=2)
    _, parts = updates(Images(perceptron), silent)
    monkeypatch.undo()
    _, whole = updates(Images(perceptron), silent)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_an_example_more_changes_one_physical_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a sum in floating point, so an example may change the bits of its own alone."""
    monkeypatch.setattr("client.training.example.privacy._GHOST_BATCH", 4)
    task, half = Images(perceptron), replace(SILENT, example_rate=0.5)
    private = ExamplePrivateTrainer(task, LocalConfig(), half, mode="ghost")
    pool, rows = task.clients(DataSource()).train, np.arange(20)
    with_it = np.arange(20) % 2 == 0
    without = with_it.copy()
    without[2] = False
    one, other = (
        [x for x, _, _ in private._physical(pool, rows, batch)] for batch in (with_it, without)
    )
    assert [len(x) for x in one] == [4, 4, 2]
    assert [torch.equal(a, b) for a, b in zip(one, other, strict=True)] == [False, True, True]


def test_a_damaged_example_counts_as_zero_under_ghost_clipping() -> None:
    task = Images(perceptron)
    pool = task.clients(DataSource()).train
    x = pool.x.clone()
    x[3] = math.inf
    private = ExamplePrivateTrainer(task, LocalConfig(learning_rate=1.0), SILENT, seed=1)
    begin = flat(task.init_model(1))
    entropy = fixed_entropy(1)
    both = private.train(begin, Examples(x=x, y=pool.y), [np.array([2, 3])], entropy)[0]
    alone = private.train(begin, Examples(x=x, y=pool.y), [np.array([2])], entropy)[0]
    np.testing.assert_allclose(2 * both, alone, atol=1e-5)
    none = private.train(begin, Examples(x=x, y=pool.y), [np.array([3])], entropy)[0]
    assert np.abs(none).max() < 1e-4, "noise alone"


def test_recurrent_models_of_our_own_go_by_torch_func() -> None:
    """Their gates' weights are used outside of the layers that own them: no hook would see it."""
    task = load("shakespeare", {"hidden": 32, "layers": 1})
    rows = torch.from_numpy(np.random.default_rng(5).integers(1, 90, (6, 12)).astype(np.uint8))
    pool = Examples(x=rows, y=rows.long())
    private = ExamplePrivateTrainer(task, LocalConfig(learning_rate=1.0), SILENT, seed=1)
    update = private.train(flat(task.init_model(1)), pool, [np.arange(6)], fixed_entropy(1))[0]
    assert private.mode == "no_op"
    assert np.isfinite(update).all()
    assert np.linalg.norm(update) > 0.01


@pytest.mark.parametrize(
    ("make", "layer", "remedy"),
    [
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 9)
            ),
            "BatchNorm2d '1'",
            "GroupNorm",
        ),
        (lambda: Recurrent(nn.GRU(24, 8, batch_first=True), 8), "GRU 'layer'", "DPGRU"),
        (lambda: Recurrent(nn.LSTM(24, 8, batch_first=True), 8), "LSTM 'layer'", "DPLSTM"),
    ],
)
def test_layers_without_gradients_of_examples_are_refused_with_the_remedy(
    make: Callable[[], nn.Module], layer: str, remedy: str
) -> None:
    with pytest.raises(TrainingError, match=rf"{layer} cannot train under.*{remedy}"):
        ExamplePrivateTrainer(Sequences(make), LocalConfig(), SILENT)


class Centred(nn.Module):
    """Takes the batch's mean off: a leak that no list of layers tells."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True) if len(x) > 1 else x


def test_a_model_that_mixes_examples_does_not_get_ghost_clipping() -> None:
    def make() -> nn.Module:
        return nn.Sequential(perceptron(), Centred())

    mode, _ = updates(Images(make), SILENT)
    assert mode == "no_op", "torch.func shows each example to the model alone"


def test_a_failing_client_leaves_the_next_untouched() -> None:
    task = Images(perceptron)
    pool = task.clients(DataSource()).train
    begin, rows = flat(task.init_model(1)), [np.arange(9)]
    private = ExamplePrivateTrainer(task, LocalConfig(), SILENT, seed=1)
    before = private.train(begin, pool, rows, fixed_entropy(1))
    with pytest.raises(TrainingError, match="client 0"):
        private.train(begin, pool, [np.array([1, 999])], fixed_entropy(1))
    assert (private.train(begin, pool, rows, fixed_entropy(1)) == before).all()


class Counting(nn.Module):
    """Adds up what it sees, without noise, and adds that to what it gives."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.seen += x.abs().sum()
        return x * (1 + self.seen)


def test_what_a_model_remembers_of_one_round_is_not_in_the_next() -> None:
    def make() -> nn.Module:
        return nn.Sequential(perceptron(), Counting())

    task = Images(make)
    pool = task.clients(DataSource()).train
    begin, rows = flat(task.init_model(1)), [np.arange(3, 9)]
    private = ExamplePrivateTrainer(task, LocalConfig(), SILENT, seed=1, mode="ghost")
    alone = private.train(begin, pool, rows, fixed_entropy(1))
    after = private.train(begin, pool, [np.arange(20)], fixed_entropy(2))
    assert (after != alone).any()
    assert (private.train(begin, pool, rows, fixed_entropy(1)) == alone).all()


@pytest.mark.parametrize("mode", ["ghost", "no_op"])
def test_no_gradient_outlives_a_round(mode: str) -> None:
    task = Images(perceptron)
    models: list[nn.Module] = []
    init = task.init_model

    def kept(seed: int) -> nn.Module:
        models.append(init(seed))
        return models[-1]

    task.init_model = kept  # type: ignore[method-assign]
    private = ExamplePrivateTrainer(task, LocalConfig(), SILENT, seed=1, mode=mode)
    pool = task.clients(DataSource()).train
    private.train(flat(init(1)), pool, [np.arange(9)], fixed_entropy(1))
    for name, param in models[0].named_parameters():
        for kind in ("grad", "grad_sample", "summed_grad"):
            assert getattr(param, kind) is None, f"{kind} of {name}"


def test_opacus_own_accountant_agrees_with_the_plan() -> None:
    """What its engine counted (rate, z, steps) is what our event charges."""
    from dp_accounting import dp_event, pld

    privacy = ExamplePrivacy(clip=1.0, noise_multiplier=1.1, example_rate=0.17, steps=30)
    private = ExamplePrivateTrainer(Images(perceptron), LocalConfig(), privacy, seed=1)
    task = Images(perceptron)
    private.train(
        flat(task.init_model(1)),
        task.clients(DataSource()).train,
        [np.arange(64)],
        fixed_entropy(1),
    )
    accountant = pld.PLDAccountant()
    accountant.compose(
        dp_event.PoissonSampledDpEvent(0.17, dp_event.GaussianDpEvent(1.1)), privacy.steps
    )
    assert private.opacus_epsilon(1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)


def test_what_was_chosen_is_said_once_a_job(
    data: FederatedData, caplog: pytest.LogCaptureFixture
) -> None:
    """A device makes a trainer every round; another job is told again."""
    caplog.set_level(logging.INFO, "client.training.example.privacy")

    def train(clip: float) -> None:
        privacy = ExamplePrivacy(clip=clip, noise_multiplier=1.0, example_rate=0.5, steps=1)
        trainer(privacy).train(start(), data.train, [np.arange(10)], fixed_entropy(1))

    for clip in (0.123, 0.123, 0.123, 0.321):
        train(clip)
    assert len(caplog.messages) == 2
    assert all(message.startswith("gradients of examples: ") for message in caplog.messages)
