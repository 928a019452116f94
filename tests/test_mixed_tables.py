"""Tables of numbers and categories as states of parts: their scaling, one network for both, the loss by hand, distances."""

import json
import math

import numpy as np
import pandas
import pytest
import torch
from helpers import check_refusal, numbers

import ornstein as orn
from ornstein.config import DataOptions
from ornstein.data import MixedScaling, TableScaling, read_scaling
from ornstein.data.tables import from_frame
from ornstein.errors import DataError, NumericalError
from ornstein.metrics import column_distances
from ornstein.noise import Noise
from ornstein.objectives import MixedObjective, UniformSteps

ROWS = 60
FLOW, COSINE = orn.RectifiedFlow(), orn.CosineVP()


def frame(rows=ROWS):
    """Numbers and categories with gaps, constants of both, and a column of categories that is called as the numbers are."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, rows)
    table = pandas.DataFrame(
        {
            "kind": np.array(["a", "b", "c"])[code],
            "size": np.where(rng.random(rows) < 0.2, np.nan, code + rng.normal(0, 0.3, rows)),
            "one": ["same"] * rows,
            "numbers": np.array([True, False])[rng.integers(0, 2, rows)],
            "count": rng.integers(0, 9, rows),
            "four": [4] * rows,
            "maybe": np.array(["x", None, "y"], dtype=object)[rng.integers(0, 3, rows)],
        }
    )
    return table, code


@pytest.fixture(scope="module")
def data():
    return from_frame(frame()[0], "mixed", 0, DataOptions())


@pytest.fixture(scope="module")
def scaling(data):
    return MixedScaling.of(data.scaling)


@pytest.mark.parametrize("numeric", ["standardise", "quantile"])
def test_a_table_comes_back_as_it_was(numeric):
    table = from_frame(frame()[0], "mixed", 0, DataOptions(numeric=numeric))
    scaling, plain = MixedScaling.of(table.scaling), table.scaling
    x = scaling.encode(table.train)
    assert {name: (part.dtype, tuple(part.shape[1:])) for name, part in x.items()} == {
        "numbers": (torch.float32, (3,)),  # a size, whether it is missing, a count
        "kind": (torch.int64, ()),
        "numbers (category)": (torch.int64, ()),
        "maybe": (torch.int64, ()),
    }
    assert scaling.shape == {name: tuple(part.shape[1:]) for name, part in x.items()}
    assert (scaling.dims, scaling.numbers) == (6, 3)
    assert scaling.categories == {"kind": 3, "numbers (category)": 2, "maybe": 3}
    names = [name for column in plain.columns for name in [column.name] * column.width]
    numeric_at = [i for i, name in enumerate(names) if name in ("size", "count")]
    assert torch.equal(x["numbers"], plain.encode(table.train)[:, numeric_at])
    raw = scaling.decode(x)
    assert raw.dtype == torch.float64
    assert torch.allclose(raw, table.train, atol=1e-5, equal_nan=True)
    assert (raw.isnan() == table.train.isnan()).all()
    found = scaling.frame(raw)
    assert list(found.columns) == list(frame()[0].columns)
    assert (found["one"] == "same").all()
    assert (found["four"] == 4).all()


def test_it_is_kept_as_json(data, scaling):
    again = read_scaling(json.loads(json.dumps(scaling.to_dict())))
    assert again == scaling
    assert type(again) is MixedScaling
    table = read_scaling(json.loads(json.dumps(data.scaling.to_dict())))
    assert type(table) is TableScaling
    assert table != scaling


def test_its_process_has_a_part_for_each(scaling):
    process = scaling.process()
    assert list(process.parts) == list(scaling.shape)
    assert process.parts["numbers"] == orn.Gaussian(COSINE)
    assert process.parts["kind"] == orn.Categorical(FLOW, orn.Absorbing(3))
    other = scaling.process(lambda k: orn.Categorical(orn.CosineVP(), orn.Uniform(k)), orn.LinearVP()).parts
    assert other["maybe"].kernel == orn.Uniform(3)
    assert other["numbers"].schedule == orn.LinearVP()
    words = MixedScaling.of(from_frame(frame()[0][["kind", "maybe"]], "words", 0, DataOptions()).scaling)
    assert list(words.process().parts) == ["kind", "maybe"]
    raw = torch.tensor([[0.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    assert torch.equal(words.decode(words.encode(raw)), raw)


def test_tables_that_do_not_fit_are_refused(data, scaling):
    alone = from_frame(frame()[0][["count", "one"]], "counts", 0, DataOptions())
    x = scaling.encode(data.train)
    for call, got in (
        (lambda: MixedScaling.of(alone.scaling), "without categories"),
        (lambda: scaling.encode(data.train[:, :2]), r"\(54, 2\); expected \(n, 7\)"),
        (lambda: scaling.encode(data.train + 5), "'kind' has codes outside 0 .. 2"),
        (lambda: scaling.decode({"kind": x["kind"]}), r"a state of \['kind'\], expected"),
    ):
        with pytest.raises(DataError, match=got):
            call()
    with pytest.raises(NumericalError, match="NaN or infinite"):
        scaling.decode({**x, "numbers": x["numbers"] * math.nan})


def test_the_density_of_the_numbers_is_that_of_their_columns(data, scaling):
    check_refusal(scaling.log_det, "'size' has missing values", "the one in model units")
    some = from_frame(frame()[0][["count", "kind"]], "some", 0, DataOptions())
    raw = some.train[:2]
    x = MixedScaling.of(some.scaling).encode(raw)["numbers"].double()
    slope = float((x[1, 0] - x[0, 0]) / (raw[1, 0] - raw[0, 0]))
    assert MixedScaling.of(some.scaling).log_det() == pytest.approx(math.log(slope), abs=1e-5)
    words = MixedScaling.of(from_frame(frame()[0][["kind"]], "words", 0, DataOptions()).scaling)
    assert words.log_det() == 0


PROCESS = orn.Product(
    {
        "numbers": orn.Gaussian(COSINE),
        "kind": orn.Categorical(FLOW, orn.Absorbing(3)),
        "word": orn.Categorical(FLOW, orn.Absorbing(4)),
    }
)
N = 6
X0 = {"numbers": numbers(N, 2).float(), "kind": torch.arange(N) % 3, "word": torch.arange(N) % 4}


class Answer(torch.nn.Module):
    """A network that says what it is told to, and keeps what it was asked."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output, self.asked = output, []

    def forward(self, x, time, cond=None, keep=None):
        self.asked.append((x, time, cond, keep))
        return self.output


def silent():
    return {"numbers": torch.zeros(N, 2), "kind": torch.zeros(N, 3), "word": torch.zeros(N, 4)}


@pytest.mark.parametrize("kind", ["v", "x0", "eps", "velocity", "edm"])
def test_numbers_are_read_as_a_denoiser_reads_them(kind):
    """The true reading gives back x_0, and the network sees numbers of variance 1 where it is told theirs."""
    schedule, sigma_data, t = orn.LinearVP(), 0.5, torch.linspace(0.1, 0.9, N, dtype=torch.float64)
    process = orn.Product({**PROCESS.parts, "numbers": orn.Gaussian(schedule)})
    x_t = process.noise(X0, t, Noise(0, N))
    truth = orn.Gaussian(schedule).estimate(x_t["numbers"], t, x0=X0["numbers"], sigma_data=sigma_data)
    network = Answer({**silent(), "numbers": truth.reading(kind)})
    found = orn.MixedDenoiser(network, process, kind, sigma_data=sigma_data)(x_t, t)
    assert torch.allclose(found.parts["numbers"].x0, X0["numbers"], atol=1e-4)
    (seen, time, cond, _), *others = network.asked
    assert (others, cond) == ([], None)  # one call
    alpha, sigma = schedule.alpha(t).numpy(), schedule.sigma(t).numpy()
    scaled = x_t["numbers"].numpy() / np.sqrt((alpha * sigma_data) ** 2 + sigma**2)[:, None]
    assert np.allclose(seen["numbers"], scaled, atol=1e-5)
    assert np.allclose(time, 1000 * t)
    for name in ("kind", "word"):
        assert torch.equal(seen[name], x_t[name])
        shown = x_t[name] < process.parts[name].categories  # what is no mask is known, any logits
        assert torch.equal(found.parts[name].log_probs[shown].argmax(1), X0[name][shown])
        assert torch.allclose(found.parts[name].probs[~shown], torch.tensor(1 / process.parts[name].categories))


def test_logits_are_read_beside_what_the_state_tells():
    process = orn.Product({"kind": orn.Categorical(FLOW, orn.Uniform(3))})
    x, logits, t = {"kind": torch.tensor([0, 2])}, torch.tensor([[0.0, 1.0, 2.0]] * 2), 0.4
    found = orn.MixedDenoiser(Answer({"kind": logits}), process, logits="d3pm")(x, t).parts["kind"].probs
    likely = 0.6 * np.eye(3)[[0, 2]] + 0.4 / 3
    truth = likely * np.exp(logits.numpy())
    assert np.allclose(found, truth / truth.sum(1, keepdims=True), atol=1e-6)
    assert np.allclose(
        orn.MixedDenoiser(Answer({"kind": logits}), process)(x, t).parts["kind"].probs, logits.softmax(1)
    )


def test_the_condition_reaches_the_network():
    network = Answer(silent())
    cond, keep = torch.arange(N), torch.arange(N) % 2 == 0
    orn.MixedDenoiser(network, PROCESS)(PROCESS.noise(X0, 0.5, Noise(0, N)), 0.5, cond, keep)
    assert torch.equal(network.asked[0][2], cond)
    assert torch.equal(network.asked[0][3], keep)


class Drawn:
    """Stands in for `Noise`: times, a normal draw, and uniform draws in order."""

    def __init__(self, u, normal, uniforms) -> None:
        self.u, self.z, self.uniforms, self.rows = u, normal, list(uniforms), slice(None)

    def shared(self):
        return self.u

    def normal(self, shape, dtype=torch.float32):
        assert tuple(self.z.shape) == tuple(shape)
        return self.z.to(dtype)

    def uniform(self, shape, dtype=torch.float64):
        return self.uniforms.pop(0).reshape(shape)


@pytest.mark.parametrize(("balance", "weighted"), [(1.0, False), (0.3, True)])
def test_the_loss_by_hand(balance, weighted):
    """A network that says 0: v^2 of the numbers, log K of each category that is a mask, over all four values of a row."""
    u, z, places = torch.rand(3, N, generator=torch.Generator().manual_seed(0)).double(), numbers(N, 2), [0.35, 0.6]
    rng = Drawn(u[0], z, u[1:])
    loss = MixedObjective(balance, weighted)(orn.MixedDenoiser(Answer(silent()), PROCESS), X0, None, rng)
    t = (np.arange(N) + u[0].numpy()) / N  # stratified
    assert np.allclose(loss.t, t)
    angle = (t + 0.008) / 1.008 * math.pi / 2
    alpha = np.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)
    v = alpha[:, None] * z.numpy() - np.sqrt(1 - alpha**2)[:, None] * X0["numbers"].numpy()
    weight = balance * (1 / t if weighted else 1.0)
    masked = [place.numpy() >= 1 - t for place in u[1:]]
    assert 0 < sum(m.sum() for m in masked) < 2 * N, places
    of_categories = weight * (masked[0] * math.log(3) + masked[1] * math.log(4)) / 4
    assert np.allclose(loss.parts["numbers"], (v**2).sum(1) / 4, atol=1e-5)
    assert np.allclose(loss.parts["categories"], of_categories, atol=1e-6)
    assert np.allclose(loss.per_example, (v**2).sum(1) / 4 + of_categories, atol=1e-5)


def test_a_batch_in_parts_has_the_losses_of_the_whole():
    network = orn.TabularMLP(2, {"kind": (4, 3), "word": (5, 4)}, width=8, depth=1)
    denoiser, objective = orn.MixedDenoiser(network, PROCESS), MixedObjective()
    whole = objective(denoiser, X0, None, Noise(3, range(N), total=N)).per_example
    for rows in (range(2), range(2, N)):
        part = {name: value[rows.start : rows.stop] for name, value in X0.items()}
        found = objective(denoiser, part, None, Noise(3, rows, total=N)).per_example
        assert torch.allclose(found, whole[rows.start : rows.stop], atol=1e-6)


def test_a_table_of_matrices_is_asked_at_its_own_times():
    kind = orn.Categorical(None, orn.DiscretisedGaussian(3, length=8))
    denoiser = orn.MixedDenoiser(Answer({"kind": torch.zeros(N, 3)}), orn.Product({"kind": kind}))
    loss = MixedObjective()(denoiser, {"kind": X0["kind"]}, None, Noise(0, N))
    assert np.allclose(loss.t * 8 % 1, 0)
    assert (loss.t == loss.t.clamp(min=1 / 8)).all()
    assert np.allclose(loss.per_example[loss.t > 1 / 8], math.log(3))  # no state is ruled out after two steps
    denoiser.shape = {"kind": ()}
    denoiser.network.output = {"kind": torch.zeros(2, 3)}
    assert orn.sample(denoiser, n=2, steps=4).x["kind"].max() < 3


def test_training_finds_the_dependence():
    """A category and a number about a mean of its own: samples have both."""
    rng, means, shares = np.random.default_rng(0), np.array([-1.3, 0.0, 1.3]), [0.5, 0.3, 0.2]
    kind = rng.choice(3, 2000, p=shares)
    x = {
        "numbers": torch.from_numpy(means[kind] + 0.3 * rng.normal(size=2000)).float()[:, None],
        "kind": torch.from_numpy(kind),
    }
    torch.manual_seed(0)
    process = orn.Product({name: PROCESS.parts[name] for name in x})
    denoiser = orn.MixedDenoiser(orn.TabularMLP(1, {"kind": (4, 3)}, width=48, depth=1), process)
    list(orn.train(denoiser, x, steps=250, batch_size=256, learning_rate=5e-3))
    assert denoiser.shape == {"numbers": (1,), "kind": ()}
    found = orn.sample(denoiser, n=1500, steps=30, seed=1, batch_size=1500).x
    for k, mean in enumerate(means):
        rows = found["numbers"][found["kind"] == k, 0]
        assert len(rows) / 1500 == pytest.approx(shares[k], abs=0.05)
        assert float(rows.mean()) == pytest.approx(mean, abs=0.1)
        assert float(rows.std()) == pytest.approx(0.3, abs=0.1)


def test_rows_that_leave_the_finite_numbers_are_counted():
    broken = silent()
    broken["numbers"][2, 0] = math.nan
    denoiser = orn.MixedDenoiser(Answer(broken), PROCESS)
    denoiser.shape = {"numbers": (2,), "kind": (), "word": ()}
    with pytest.raises(NumericalError, match=r"step 1, .* in 1 of 6 samples"):
        orn.sample(denoiser, n=N, steps=3)


def test_denoisers_and_objectives_that_do_not_fit_are_refused():
    net, numbers_only = Answer(silent()), orn.Gaussian(COSINE)
    check_refusal(lambda: orn.MixedDenoiser(net, numbers_only), "Gaussian(", "a Product")
    check_refusal(lambda: orn.MixedDenoiser(net, PROCESS, "vv"), "'vv'", "did you mean 'v'")
    check_refusal(lambda: orn.MixedDenoiser(net, PROCESS, "eps"), "'eps' says nothing about x_0 at t = 1", "'v'")
    check_refusal(lambda: orn.MixedDenoiser(net, PROCESS, "edm"), "'edm'", "sigma_data")
    check_refusal(lambda: orn.MixedDenoiser(net, PROCESS, logits="dpm"), "'dpm'", "x0 or d3pm")
    based = orn.Gaussian(COSINE, orn.processes.Normal(torch.zeros(2), torch.ones(2)))
    check_refusal(lambda: orn.MixedDenoiser(net, orn.Product({"numbers": based})), "Normal(", "without a base")
    fewer = orn.MixedDenoiser(Answer({"kind": torch.zeros(N, 3)}), PROCESS)
    check_refusal(lambda: fewer(X0, 0.5), "returns ['kind']", "['kind', 'numbers', 'word']")
    check_refusal(lambda: MixedObjective(balance=0.0), "balance=0.0", "a positive number")
    check_refusal(lambda: MixedObjective(times=UniformSteps(10)), "UniformSteps", "UniformTime()")
    rng = Noise(0, N)
    plain = orn.Denoiser(torch.nn.Identity(), numbers_only, "v")
    check_refusal(lambda: MixedObjective()(plain, X0["numbers"], None, rng), "Gaussian", "a Product")
    uniform = orn.Product({"kind": orn.Categorical(FLOW, orn.Uniform(3))})
    unmasked = orn.MixedDenoiser(Answer({"kind": torch.zeros(N, 3)}), uniform)
    check_refusal(
        lambda: MixedObjective(weighted=True)(unmasked, {"kind": X0["kind"]}, None, rng), "Uniform(", "weighted=False"
    )


def test_distances_of_columns_are_sums_over_cells(data):
    rng = np.random.default_rng(1)
    a, b = data.train, data.test.repeat(4, 1)
    found = column_distances(a, b, data.scaling, bins=4)
    assert set(found.columns) == {"kind", "size", "numbers", "count", "maybe"}  # the constants say nothing
    assert len(found.pairs) == 10
    names = list(data.scaling.names)

    def shares(values, cells):
        return np.array([(values == cell).mean() for cell in cells])

    kind = names.index("kind")
    truth = np.abs(shares(a[:, kind].numpy(), range(3)) - shares(b[:, kind].numpy(), range(3))).sum() / 2
    assert found.columns["kind"] == pytest.approx(truth, abs=1e-12)
    # the cells of numbers are between numpy's quantiles of the real ones, and the missing ones by themselves
    x, y = rng.normal(0.3, 1, 500), rng.normal(0, 1, 400)
    x[:50], y[:20] = np.nan, np.nan
    edges = [-np.inf, *np.quantile(y[20:], [0.25, 0.5, 0.75], method="higher"), np.inf]
    cells = np.histogram(x, edges)[0] / 500, np.histogram(y, edges)[0] / 400
    size, raw = names.index("size"), [torch.zeros(n, 7, dtype=torch.float64) for n in (500, 400)]
    raw[0][:, size], raw[1][:, size] = torch.from_numpy(x), torch.from_numpy(y)
    raw[0][:, kind] = 1
    alone = column_distances(*raw, data.scaling, bins=4)
    truth = (np.abs(cells[0] - cells[1]).sum() + abs(50 / 500 - 20 / 400)) / 2
    assert alone.columns["size"] == pytest.approx(truth, abs=1e-12)
    assert alone.columns["kind"] == alone.pairs["kind", "size"] == 1.0  # no cell has rows of both
    assert alone.pairs["size", "count"] == pytest.approx(truth, abs=1e-12)
    assert alone.column_mean == pytest.approx((1 + truth) / 5)
    assert alone.pair_mean == pytest.approx((4 + 3 * truth) / 10)
    same = column_distances(a, a, data.scaling)
    assert same.column_mean == same.pair_mean == 0


def test_distances_see_a_dependence_that_columns_alone_hide(data):
    rows = torch.zeros(400, 7, dtype=torch.float64)
    kind, maybe = (list(data.scaling.names).index(name) for name in ("kind", "maybe"))
    rows[:, kind], rows[:, maybe] = torch.arange(400) % 2, torch.arange(400) % 2
    other = rows.clone()
    other[:, maybe] = torch.arange(400) // 2 % 2
    found = column_distances(other, rows, data.scaling)
    assert found.column_mean == 0
    assert found.pairs["kind", "maybe"] == pytest.approx(0.5)


def test_distances_refuse_what_does_not_fit(data):
    with pytest.raises(DataError, match=r"samples of shape \(0, 7\), expected \(n, 7\)"):
        column_distances(data.train[:0], data.test, data.scaling)
    with pytest.raises(DataError, match=r"real rows of shape \(6, 2\)"):
        column_distances(data.train, data.test[:, :2], data.scaling)
    check_refusal(lambda: column_distances(data.train, data.test, data.scaling, bins=1), "bins=1", "at least 2")
