"""Training: `Run` holds all that changes, `train` is the loop as a generator.

Every draw is a function of (seed, examples seen, place in the batch): the order of the data, times, noise and dropped labels.
The learning rate is a function of step / total, the windows of the averages one of the step. So a run restored from its
tensors and its counters goes on bit for bit as if it had never stopped, on the same machine and number of processes.
"""

from ornstein.training.averages import Averages
from ornstein.training.loop import check_batch, train
from ornstein.training.order import Batches
from ornstein.training.run import LEVELS, Record, Run
from ornstein.training.weights import load_network

__all__ = ["LEVELS", "Averages", "Batches", "Record", "Run", "check_batch", "load_network", "train"]
