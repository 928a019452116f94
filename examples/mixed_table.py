"""A mixed table: five columns of numbers and five of categories, of a law that is known, like that of the census data "adult".

python examples/mixed_table.py

Numbers diffuse by Gaussian noise, categories by masks; one network denoises both. Printed: mean distances from held-out rows.
"""

import numpy as np
import pandas
import torch

import ornstein as orn
from ornstein.data.tables import DataOptions, from_frame
from ornstein.metrics import column_distances
from ornstein.plots.grids import image_grid

STEPS, N, DEGREES = 2500, 2000, "school diploma college bachelor master"


def table(rows: int = 20_000, seed: int = 0) -> pandas.DataFrame:
    rng, frame, one = np.random.default_rng(seed), pandas.DataFrame(index=range(rows)), np.ones(rows)

    def drawn(name, words, *terms):  # the softmax of a sum of terms, each the number of a row times that of a category
        logits = sum(np.multiply.outer(x, weights) for x, weights in terms)
        code = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        frame[name] = np.array(words.split())[code]
        return code

    frame["age"] = age = (17 + rng.gamma(2.5, 9.0, rows)).clip(17, 90).astype(int)
    sex = drawn("sex", "male female", (one, [0.4, 0]))
    degree = drawn("degree", DEGREES, (one, [0.3, 1.2, 0.8, 0.6, -0.6]), (age < 23, [1, 1, 1, -2, -5]))
    frame["years"] = years = np.array([8, 12, 14, 16, 18])[degree] + rng.integers(-1, 2, rows)
    drawn("state", "single married widowed", (one, [0, 0, -4]), (age - 30, [-0.1, 0, 0.06]), (sex, [0, -0.5, 1]))
    job = drawn("job", "service craft clerk manager", (degree - 2, [-0.8, -0.7, 0, 0.6]), (sex, [0.5, -2, 1.2, 0]))
    work = drawn("work", "private public own", (one, [1.5, 0, -0.5]), (job == 3, [0, 0, 1]), (degree == 4, [0, 1, 0]))
    hours = (42 - 5 * sex + 6 * (work == 2) - 12 * (age > 65) + rng.normal(0, 9, rows)).clip(5, 90).astype(int)
    frame["hours"] = hours = np.where((rng.random(rows) < 0.4) & (work < 2), 40, hours)
    pay = np.array([8.6, 8.8, 8.7, 9.2])[job] + 0.07 * years + 0.8 * np.log(hours / 40) - 0.15 * sex
    frame["income"] = income = np.exp(pay + 0.02 * age.clip(max=50) + rng.normal(0, 0.35, rows)).round()
    frame["capital"] = (np.exp(rng.normal(np.log(income) - 1, 1.2)) * (rng.random(rows) < age / 100)).round()
    return frame


def main(out: str = "mixed_table.png") -> None:
    data = from_frame(table(), "adult", 0, DataOptions(numeric="quantile"))
    scaling = orn.MixedScaling.of(data.scaling)
    torch.manual_seed(0)
    network = orn.TabularMLP(scaling.numbers, {name: (k + 1, k) for name, k in scaling.categories.items()})
    denoiser = orn.MixedDenoiser(network, scaling.process())
    list(orn.train(denoiser, scaling.encode(data.train), steps=STEPS, batch_size=256, learning_rate=2e-3))
    samples, pictures = scaling.decode(orn.sample(denoiser, n=N, steps=25, seed=1).x), []
    for name, rows in {"samples": samples, "training rows": data.train[:N]}.items():
        found, frame = column_distances(rows, data.test, scaling), scaling.frame(rows)
        print(f"{name}: {found.column_mean:.4f} over columns, {found.pair_mean:.4f} over pairs")
        pictures.append(pandas.crosstab(frame["job"], frame["degree"]).to_numpy())
    image_grid((np.stack(pictures) / 2).clip(0, 255).astype(np.uint8), out)


if __name__ == "__main__":
    main()
