"""The cross-entropy of noisy data, by which a `Classifier` learns p_t(y | x_t)."""

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from ornstein.classifiers import Classifier
from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives.squared import EDGE, Loss, TimeLaw, UniformTime
from ornstein.objectives.times import weight_of


@dataclass(frozen=True)
class CrossEntropy:
    """-log p_t(y | x_t) in nats, with t from the time law and x_t = process.noise(x_0, t).

    Its minimiser is p_t(y | x_t) = E[p(y | x_0) | x_t] at every t, its least value the conditional entropy H(y | x_t): a
    network that sees the noise level learns what can be known of the class at that level (paper 002 eq. 53-54).
    """

    times: TimeLaw = field(default_factory=UniformTime)

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) with the classes cond (b,), with draws from rng; `keep` does not matter.

        `denoiser` is a `Classifier`. Times are drawn for the whole batch of which rng holds a part. Raises
        `ConfigurationError` for a denoiser, or without classes.
        """
        classifier = cast(Classifier, denoiser)
        if not isinstance(classifier, Classifier) or cond is None:
            got = "no classes" if isinstance(classifier, Classifier) else type(denoiser).__name__
            raise ConfigurationError(f"got {got}, expected a Classifier and cond=labels, a class an example")
        t = self.times(classifier.process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
        loss = -classifier.log_prob(classifier.process.noise(x0, t, rng), t, cond)
        weight = weight_of(self.times, t)
        if weight is not None:
            weight = weight.to(loss)
            loss = loss * weight
        return Loss(loss, t, weight=weight)
