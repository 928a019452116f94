"""Guidance: denoiser -> denoiser, so that it works with every sampler, schedule and parametrisation, and several combine.

    ClassifierFreeGuidance   D_w = D(x, none) + w (D(x, c) - D(x, none))        one call on a doubled batch
    Autoguidance             D_w = D_weak(x, c) + w (D(x, c) - D_weak(x, c))    two networks, a call each
    ClassifierGuidance       score + w grad log p_t(c | x_t)                    any differentiable log p_t(c | x_t)
    PosteriorSampling        score + w grad log p(c | x_0 = E[x_0 | x_t])       any log-likelihood of x_0; approximate

w is `scale`, and w = 1 is the plain conditional model; many papers write w + 1 for it. With the exact p_t(c | x_t), which is
E[p(c | x_0) | x_t] (paper 002 eq. 53-54) and not p(c | x_0 = x_t), ClassifierGuidance at w = 1 is the conditional law. At
other w none of them is a law with a name: the guided field is not the score of the diffused p(x_0 | c)^w p(x_0)^(1-w), but at
t = 0 (Ho and Salimans 2022; a test shows the gap in closed form). So a likelihood of a guided model is that of its own flow.
"""

from ornstein.guidance.extrapolation import Autoguidance, ClassifierFreeGuidance
from ornstein.guidance.gradients import ClassifierGuidance, PosteriorSampling

__all__ = ["Autoguidance", "ClassifierFreeGuidance", "ClassifierGuidance", "PosteriorSampling"]
