"""What to train on: built-in digits and toys, arrays, text, tables, folders and zips of images, `hf:` data; their scaling."""

from ornstein.data.codes import Codes, discrete, placed
from ornstein.data.columns import TableScaling
from ornstein.data.conditioning import Conditioning
from ornstein.data.dataset import Dataset, class_index, require_labels
from ornstein.data.load import NAMES, load_dataset
from ornstein.data.mixed import MixedScaling, read_scaling
from ornstein.data.scaling import Scaling, to_uint8_images
from ornstein.data.toys import TOYS
from ornstein.data.vocabulary import Vocabulary

__all__ = [
    "NAMES",
    "TOYS",
    "Codes",
    "Conditioning",
    "Dataset",
    "MixedScaling",
    "Scaling",
    "TableScaling",
    "Vocabulary",
    "class_index",
    "discrete",
    "load_dataset",
    "placed",
    "read_scaling",
    "require_labels",
    "to_uint8_images",
]
