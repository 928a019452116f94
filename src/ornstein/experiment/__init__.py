"""A run folder: train what its configuration says, with a log, validation, sample grids and checkpoints on the way.

RUN/config.json   RUN/log.jsonl   RUN/checkpoints/step-*   RUN/samples/step-*.png   RUN/tensorboard/
"""

from ornstein.experiment.aims import objective
from ornstein.experiment.creation import begin, build, create, prepare, resume
from ornstein.experiment.experiment import Experiment

__all__ = ["Experiment", "begin", "build", "create", "objective", "prepare", "resume"]
