"""Exact denoisers: data laws whose posterior mean E[x_0 | x_t] and log-density at every noise level are known in closed form.

They are the independent truth of the tests, and teaching material: the ideal denoiser of a data set is here too. All
compute in float64 and return the type of x_t. Densities are in nats, of x_t in its own units.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.processes.categorical import Categorical, CategoricalEstimate
from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.processes.normal import Normal as Base
from ornstein.processes.normal import Number
from ornstein.schedules.base import Time, as_time

LOG_2PI = math.log(2 * math.pi)


class Normal:
    """x_0 ~ N(mean, covariance): E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2 Sigma)^-1 (x_t - mu - alpha (m - mu)).

    Args:
        process: the forward process, of any base.
        mean: of shape d.
        covariance: a number (times I), variances of shape d, or a full matrix (D, D) with D the size of d.
    """

    def __init__(self, process: Gaussian, mean: Tensor, covariance: Tensor | float) -> None:
        self.process, self.shape = process, tuple(mean.shape)
        self.mean = mean.double().flatten()
        size, covariance = mean.numel(), torch.as_tensor(covariance, dtype=torch.float64)
        if covariance.shape == mean.shape or covariance.ndim == 0:
            covariance = torch.diag(covariance.expand(mean.shape).flatten())
        if covariance.shape != (size, size):
            raise ConfigurationError(
                f"got covariance of shape {tuple(covariance.shape)} for a mean of shape {self.shape}, "
                f"expected a number, {self.shape} or {(size, size)}"
            )
        identity = torch.eye(size, dtype=torch.float64)
        factor = torch.linalg.cholesky(identity if process.base is None else _one(process).matrix())
        half = torch.linalg.solve_triangular(factor, covariance, upper=False)
        white = torch.linalg.solve_triangular(factor, half.T, upper=False)
        self._variances, vectors = torch.linalg.eigh((white + white.T) / 2)
        if self._variances.min() < 0 and self._variances.min() < -1e-9 * self._variances.max():
            raise ConfigurationError(
                f"got a covariance with eigenvalue {self._variances.min():g}, expected none below 0"
            )
        self._variances = self._variances.clamp(min=0)
        self._to, self._from = vectors.T @ torch.linalg.inv(factor), factor @ vectors

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The exact estimate at x_t (b, *d) and time t."""
        y, alpha, variance = self._whitened(x_t, t)
        x0 = self.mean + (y * alpha * self._variances / variance) @ self._from.T
        return self.process.estimate(x_t, t, x0=x0.to(x_t.dtype).view_as(x_t))

    def log_density(self, x_t: Tensor, t: Time) -> Tensor:
        """log p_t(x_t) in nats, (b,)."""
        y, _, variance = self._whitened(x_t, t)
        return -0.5 * (y**2 / variance + variance.log() + LOG_2PI).sum(1) + torch.linalg.slogdet(self._to)[1]

    def _whitened(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """x_t less its mean in the eigenbasis of C against Sigma; alpha (., 1); the variances there at t."""
        alpha, sigma = (as_time(c).reshape(-1, 1) for c in self.process.level(t)[:2])
        mu = torch.zeros_like(self.mean) if self.process.base is None else self.process.base.mean.double().flatten()
        centred = x_t.double().flatten(1) - mu - alpha * (self.mean - mu)
        return centred @ self._to.T, alpha, alpha**2 * self._variances + sigma**2


class Mixture:
    """x_0 ~ sum_k w_k N(m_k, diag(v_k)): the mean over components of E[x_0 | x_t, k], weighted by their posterior.

    Args:
        process: the forward process; its base must be None or diagonal.
        means: (K, *d).
        variances: a number, (K,), or (K, *d); 0 is allowed (a point).
        weights: (K,), positive; uniform by default.
    """

    def __init__(
        self, process: Gaussian, means: Tensor, variances: Tensor | float, weights: Tensor | None = None
    ) -> None:
        base = None if process.base is None else _one(process)
        if base is not None and not base.diagonal:
            raise ConfigurationError("got a process with a full covariance, expected base=None or a diagonal one")
        self.process, self.shape = process, tuple(means.shape[1:])
        self.means = means.double().flatten(1)
        variances = torch.as_tensor(variances, dtype=torch.float64)
        if variances.ndim and variances.shape not in (means.shape[:1], means.shape):
            raise ConfigurationError(
                f"got variances of shape {tuple(variances.shape)}, expected a number, ({len(means)},) or {tuple(means.shape)}"
            )
        self.variances = variances.reshape(-1, 1) if variances.ndim < 2 else variances.flatten(1)
        weights = torch.ones(len(means)) if weights is None else weights
        if weights.shape != means.shape[:1] or not (weights > 0).all():
            raise ConfigurationError(
                f"got weights of shape {tuple(weights.shape)}, expected ({len(means)},), all positive"
            )
        self._log_weights = torch.log(weights.double() / weights.double().sum())
        zeros = torch.zeros(self.means.shape[1], dtype=torch.float64)
        self._mu = zeros if base is None else base.mean.double().flatten()
        self._base = zeros + 1 if base is None else base.matrix().diagonal()
        self._round = base is None and self.variances.shape[1] == 1

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The exact estimate at x_t (b, *d) and time t."""
        x0 = self._at_times(self._posterior_mean, x_t, t)
        return self.process.estimate(x_t, t, x0=x0.to(x_t.dtype).view_as(x_t))

    def log_density(self, x_t: Tensor, t: Time) -> Tensor:
        """log p_t(x_t) in nats, (b,)."""
        return self._at_times(lambda x, t: torch.logsumexp(self._log_joint(x, t), dim=1), x_t, t)

    def _at_times(self, of: Callable[[Tensor, Time], Tensor], x_t: Tensor, t: Time) -> Tensor:
        """of(x, t) in float64. Where components or the base are not round, rows of times of their own are taken one by one."""
        x, t = x_t.double().flatten(1), t if isinstance(t, Tensor) and t.ndim else float(t)
        if isinstance(t, float) or self._round:
            return of(x, t)
        return torch.cat([of(row[None], float(s)) for row, s in zip(x, as_time(t), strict=True)])

    def _level(self, t: Time) -> tuple[Number, Number]:
        """alpha and sigma beside rows, floats or (b, 1)."""
        alpha, sigma, _ = self.process.level(t)
        return (alpha, sigma) if isinstance(t, float) else (as_time(alpha)[:, None], as_time(sigma)[:, None])

    def _log_joint(self, x: Tensor, t: Time) -> Tensor:
        """log w_k N(x; mu + alpha (m_k - mu), alpha^2 v_k + sigma^2 Sigma), (b, K), by matrix products."""
        alpha, sigma = self._level(t)
        means, x, size = self.means - self._mu, x - self._mu, x.shape[1]
        if self._round:
            variance = alpha**2 * self.variances.T + sigma**2  # (b or 1, K or 1)
            distance = (x**2).sum(1, keepdim=True) - 2 * alpha * (x @ means.T) + alpha**2 * (means**2).sum(1)
            return self._log_weights - 0.5 * (distance / variance + size * (variance.log() + LOG_2PI))
        variance = alpha**2 * self.variances + sigma**2 * self._base
        centre = alpha * means
        distance = (x**2) @ (1 / variance).T - 2 * x @ (centre / variance).T + (centre**2 / variance).sum(1)
        return self._log_weights - 0.5 * (distance + variance.log().sum(1) + size * LOG_2PI)

    def _posterior_mean(self, x: Tensor, t: Time) -> Tensor:
        alpha, sigma = self._level(t)
        share = torch.softmax(self._log_joint(x, t), dim=1)
        if self._round:
            gain = alpha * self.variances.T / (alpha**2 * self.variances.T + sigma**2)
            return (share * (1 - gain * alpha)) @ self.means + (share * gain).sum(1, keepdim=True) * x
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2 * self._base)
        fixed = self.means - gain * alpha * (self.means - self._mu)
        return share @ fixed + (share @ gain.expand_as(self.means)) * (x - self._mu)


class Empirical(Mixture):
    """The ideal denoiser of a data set: each example a centre of variance smoothing^2 (paper 000 eq. 197 at 0).

    E[x_0 | x_t] = sum_i softmax_i(-||x_t - alpha y_i||^2 / (2 (sigma^2 + alpha^2 smoothing^2))) y_i where smoothing is 0.
    """

    def __init__(self, process: Gaussian, data: Tensor, smoothing: float = 0.0) -> None:
        if not smoothing >= 0:
            raise ConfigurationError(f"got smoothing={smoothing}, expected 0 or above")
        super().__init__(process, data, float(smoothing) ** 2)


def _one(process: Gaussian) -> Base:
    """The base of a process. Raises `ConfigurationError` where it is a law for each row, or a function of the condition."""
    base = process.base
    if not isinstance(base, Base) or base.one_a_row:
        raise ConfigurationError(
            "got a process whose base depends on the condition, expected one base for all rows: Gaussian(schedule, base); the "
            "exact denoiser of one condition is that of its own process"
        )
    return base


class Table:
    """Categories of a known joint law p(x_0), (K,) * n: p(x_0^d | x_t) of each site, by summing over all K^n states.

    Args:
        process: a `Categorical` process of K categories.
        joint: the probabilities, n axes of K.

    Raises `ConfigurationError` unless they are probabilities of such a shape.
    """

    def __init__(self, process: Categorical, joint: Tensor) -> None:
        joint, k = torch.as_tensor(joint, dtype=torch.float64), process.categories
        if joint.ndim < 1 or set(joint.shape) != {k} or joint.min() < 0 or abs(float(joint.sum()) - 1) > 1e-9:
            raise ConfigurationError(
                f"got a joint law of shape {tuple(joint.shape)} and sum {float(joint.sum()):g}, expected "
                f"probabilities, axes of {k}"
            )
        self.process, self.joint, self.shape = process, joint, (joint.ndim,)

    def __call__(
        self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None
    ) -> CategoricalEstimate:
        """The exact estimate at states x_t (b, n) and time t, a float or (b,)."""
        likelihood = self.process.evidence(x_t, t).exp()
        weights = self._weighted(likelihood).to(x_t.device)
        axes = range(1, weights.ndim)
        sites = [weights.sum([a for a in axes if a != axis]) if weights.ndim > 2 else weights for axis in axes]
        probs = torch.stack(sites, 1)
        return CategoricalEstimate(self.process, x_t, t, (probs / probs.sum(-1, keepdim=True)).log())

    def log_density(self, x_t: Tensor, t: Time) -> Tensor:
        """log p_t(x_t), in nats, (b,)."""
        k, times = (
            self.process.categories,
            t if isinstance(t, Tensor) else torch.tensor([float(t)], dtype=torch.float64),
        )
        rows = self.process.transition(
            torch.arange(k).expand(len(times), k), 0.0, as_time(times)
        ).probs  # (1 or b, K, S)
        found = rows.expand(len(x_t), -1, -1).gather(
            2, x_t[:, None].expand(-1, k, -1)
        )  # (b, K, n): q(x_t | x_0) of each site
        return self._weighted(found.mT).flatten(1).sum(1).log()

    def _weighted(self, likelihood: Tensor) -> Tensor:
        """p(x_0) prod_d of the likelihood (b, n, K), (b, K, .., K)."""
        weights, n = self.joint.to(likelihood), self.joint.ndim
        for site in range(n):
            weights = weights * likelihood[:, site].reshape(len(likelihood), *(1,) * site, -1, *(1,) * (n - 1 - site))
        return weights
