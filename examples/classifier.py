"""Classifier guidance: an unconditional model, guided by a classifier of noisy images that was trained apart.

ornstein train digits --condition none --out runs/plain && ornstein train-classifier runs/plain --out runs/classifier
python examples/classifier.py runs/plain runs/classifier classifier.png

A column a class; rows: unguided; scale 1, Bayes' rule; scale 4; a classifier that is asked as if x_t were clean, which is wrong.
"""

import sys

import torch

import ornstein as orn
from ornstein.checkpoints import load_classifier
from ornstein.data import to_uint8_images
from ornstein.plots.grids import image_grid


def main(run: str = "runs/plain", classifier: str = "runs/classifier", out: str = "classifier.png") -> None:
    model, judge = orn.load(run), load_classifier(classifier)
    classes = torch.arange(len(judge.classes))

    def naive(x_t, t, labels):
        return judge.log_prob(x_t, judge.process.schedule.t_min, labels)

    rows = []
    for name, log_prob, scale in (
        ("unguided", judge.log_prob, 0.0),
        ("Bayes' rule", judge.log_prob, 1.0),
        ("scale 4", judge.log_prob, 4.0),
        ("at the wrong noise level", naive, 1.0),
    ):
        guided = orn.ClassifierGuidance(model, log_prob, scale)
        x = orn.sample(guided, calls=25, cond=classes).x
        with torch.no_grad():
            named = judge(model.scaling.encode(x), judge.process.schedule.t_min).argmax(1)
        print(f"{name}: the classifier names {int((named == classes).sum())} of {len(classes)} as asked")
        rows.append(x)
    image_grid(to_uint8_images(model.scaling, torch.cat(rows)), out, columns=len(classes))


if __name__ == "__main__":
    main(*sys.argv[1:])
