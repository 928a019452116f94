"""Text: vocabularies and their places, windows that share memory, the end held out."""

import gzip
import importlib.util
import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ornstein.config import DataOptions
from ornstein.data import Codes, Vocabulary, discrete, load_dataset, placed, read_scaling
from ornstein.data.codes import tokens_under
from ornstein.errors import ConfigurationError, DataError
from ornstein.experiment.feed import Feed

TEXT = "".join(np.random.default_rng(0).choice(list("abc déf\nß€"), 1000))
SHORT = DataOptions(length=8)
has_tokenizers = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs tokenizers")


def written(folder, text=TEXT, name="corpus.txt"):
    path = folder / name
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer.json of five words; it knows no others."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "the": 1, "cat": 2, "sat": 3, ".": 4, "\u20ac": 5}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(3)  # must not cut the text
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_characters_are_numbered_in_order():
    vocabulary = Vocabulary.of_text(TEXT)
    assert vocabulary.symbols == "".join(sorted(set(TEXT)))
    codes = vocabulary.encode(TEXT)
    assert codes.dtype == torch.int64
    assert codes.tolist() == [sorted(set(TEXT)).index(c) for c in TEXT]  # by the definition
    assert vocabulary.decode(codes) == TEXT
    assert vocabulary.decode([]) == ""
    assert len(vocabulary.encode("")) == 0
    assert vocabulary.characters(codes.reshape(10, 100)) == 1000
    high = "a\U0001f600\uffff"
    assert Vocabulary.of_text(high).decode(Vocabulary.of_text(high).encode("\U0001f600a")) == "\U0001f600a"


def test_bytes_write_any_text():
    vocabulary = Vocabulary.of_bytes()
    codes = vocabulary.encode("é€\U0001f600x")
    assert codes.tolist() == list("é€\U0001f600x".encode())
    assert len(vocabulary) == 256
    assert vocabulary.decode(codes) == "é€\U0001f600x"
    assert vocabulary.characters(codes) == 4
    # A window's end may split a character: counts of parts add up all the same, and the split one is shown as such.
    assert sum(vocabulary.characters(part) for part in codes.split(3)) == 4
    assert vocabulary.decode(codes[:4]) == "é\ufffd"


def test_what_is_not_in_the_vocabulary_is_named_with_its_place():
    vocabulary, text = Vocabulary.of_text("abc\n"), "abc\nab\ncaéb"
    with pytest.raises(
        DataError,
        match=r"prompt: 'é' at character 10 \(line 3, column 3\) is not in .*4 characters '.*abc'.*--unknown skip",
    ):
        vocabulary.encode(text, where="prompt")
    with pytest.raises(DataError, match=r"'é' at character 14 \(line 4, column 3\)"):
        vocabulary.encode(text, before="xyz\n")
    assert vocabulary.decode(vocabulary.encode(text, "skip")) == "abc\nab\ncab"
    assert vocabulary.unknown(text) == 1
    with pytest.raises(DataError, match="'z' at character 1 "):  # above all that are known
        vocabulary.encode("z")
    for wrong, place in (([0, 4, 9], 1), ([-1], 0)):
        with pytest.raises(DataError, match=rf"the code {wrong[place]} at place {place} .*0 to 3"):
            vocabulary.decode(wrong)
    with pytest.raises(DataError, match="expected integers"):
        vocabulary.decode(torch.zeros(3))


def test_vocabularies_survive_json_and_refuse_nonsense():
    for vocabulary in (Vocabulary.of_text(TEXT), Vocabulary.of_bytes()):
        assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    for fields, said in (
        ({"kind": "words"}, "'words', expected one of characters, bytes, tokens"),
        ({"kind": "bytes", "symbols": "ab"}, "2 characters"),
        ({"kind": "characters"}, "0 characters"),
        ({"kind": "characters", "symbols": "ba"}, "in order"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            Vocabulary(**fields)
    with pytest.raises(ConfigurationError, match=r"fields \['kind'\]"):
        Vocabulary.from_dict({"kind": "bytes"})
    with pytest.raises(DataError, match="without characters"):
        Vocabulary.of_text("")
    with pytest.raises(ConfigurationError, match=r"got vocabulary='bites'; did you mean 'bytes'"):
        Vocabulary.named("bites", "")


def test_a_tokenizer_is_kept_whole(tokenizer, tmp_path):
    vocabulary = Vocabulary.of_file(tokenizer)
    tokenizer.unlink()
    codes = vocabulary.encode("the cat sat . the\nthe €")
    assert codes.tolist() == [1, 2, 3, 4, 1, 1, 5]
    assert len(vocabulary) == 6
    assert vocabulary.decode(codes) == "the cat sat . the the €"
    assert vocabulary.characters(torch.stack([codes[:2], codes[2:4]])) == len("the cat") + len("sat .")
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert again.encode("cat").tolist() == [2]
    with pytest.raises(DataError, match=r"'dog' at character 9 \(line 2, column 5\) is not in the .* 6 tokens"):
        vocabulary.encode("cat\nthe dog sat")
    assert vocabulary.encode("the dog sat", "skip").tolist() == [1, 3]
    assert vocabulary.unknown("the dog sat") == 3
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"tokenizer cannot be read .*expected a tokenizer.json"):
        Vocabulary.of_file(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("no json")
    with pytest.raises(ConfigurationError, match=r"cannot be read as a tokenizer"):
        Vocabulary.of_file(tmp_path / "bad.json")


@has_tokenizers
def test_what_a_tokenizer_drops_without_a_word_is_unknown():
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # no token for the unknown: it leaves "x" out
    assert made.encode("axb").ids == [0, 1]
    vocabulary = Vocabulary("tokens", tokenizer=made.to_str())
    with pytest.raises(DataError, match="'xx' at character 2 "):
        vocabulary.encode("axxbay")
    assert vocabulary.unknown("axxbay") == 3
    assert vocabulary.encode("axxbay", "skip").tolist() == [0, 1, 0]
    words = Vocabulary("tokens", tokenizer=Tokenizer(models.WordLevel({"a": 0, "b": 1})).to_str())
    with pytest.raises(DataError, match="the tokenizer refuses the text"):
        words.encode("c")


@has_tokenizers
def test_a_tokenizer_of_bytes_knows_all():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    vocabulary = Vocabulary("tokens", tokenizer=made.to_str())
    assert len(vocabulary) == 256
    assert len(vocabulary.encode(TEXT)) == len(TEXT.encode())
    assert vocabulary.decode(vocabulary.encode(TEXT)) == TEXT
    assert vocabulary.unknown(TEXT) == 0


def test_without_the_package_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ConfigurationError, match=r'pip install "ornstein\[text\]"'):
        Vocabulary("tokens", tokenizer="{}").encode("a")


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz"])
def test_windows_are_a_view_and_the_end_is_held_out(tmp_path, name):
    data = load_dataset(written(tmp_path, name=name), options=SHORT)
    assert data.train.shape == (900 - 7, 8)
    assert data.test.shape == (12, 8)
    assert data.train.dtype == torch.uint8
    assert data.train.untyped_storage().nbytes() == 900
    assert data.train[5:].data_ptr() == data.train.data_ptr() + 5
    assert data.scaling.text(data.train[[0, 17, 892]]) == [TEXT[i : i + 8] for i in (0, 17, 892)]
    assert "".join(data.scaling.text(data.test)) == TEXT[900:996]
    assert data.describe() == (
        f"{name}: 893 training + 12 held-out windows of 8 characters, vocabulary of 10 characters; the last 4 of the "
        "held-out characters are in no window"
    )
    assert load_dataset(tmp_path / name, options=SHORT, seed=5).fingerprint == data.fingerprint  # nothing is drawn
    assert load_dataset(tmp_path / name, options=SHORT, holdout=0.25).train.shape == (743, 8)
    x0 = data.scaling.encode(data.train[3:5])
    assert x0.dtype == torch.int64
    assert torch.equal(x0, data.train[3:5].long())
    assert data.scaling.dims == 8
    assert data.scaling.levels == 10
    assert discrete(data) is data


def test_the_split_is_of_characters_whatever_the_vocabulary(tmp_path):
    path = written(tmp_path)
    data = load_dataset(path, options=replace(SHORT, vocabulary="bytes"))
    whole = np.frombuffer(TEXT[:900].encode(), np.uint8)
    assert np.array_equal(tokens_under(data.train), whole)
    assert len(data.train) == len(whole) - 7
    held = TEXT[900:].encode()
    assert data.test.flatten().numpy().tobytes() == held[: len(held) // 8 * 8]
    assert data.scaling.levels == 256
    counted = sum(data.scaling.vocabulary.characters(window) for window in data.test)
    assert counted == len(held[: len(held) // 8 * 8].decode(errors="ignore")) + (held[len(held) // 8 * 8 - 1] >= 0xC0)


def test_larger_vocabularies_take_larger_tokens(tmp_path):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 4
    data = load_dataset(written(tmp_path, text), options=SHORT)
    assert data.train.dtype == torch.int16
    assert data.scaling.dtype == "int16"
    assert torch.equal(data.scaling.decode(data.scaling.encode(data.test)), data.test)
    assert "".join(data.scaling.text(data.test)) == text[1080:1200]


def test_tokens_of_a_file(tmp_path, tokenizer):
    path = written(tmp_path, "the cat sat . " * 100)
    data = load_dataset(path, options=replace(SHORT, vocabulary=str(tokenizer)))
    assert data.scaling.text(data.train[1:2]) == ["cat sat . the cat sat . the"]
    assert "windows of 8 tokens, vocabulary of 6 tokens" in data.describe()
    assert read_scaling(json.loads(json.dumps(data.scaling.to_dict()))) == data.scaling


def test_held_out_characters_that_training_lacks(tmp_path):
    text = TEXT[:950] + "\nZ" + TEXT[:48] + "Z"
    path, line = written(tmp_path, text), TEXT[:950].count("\n") + 2
    with pytest.raises(DataError, match=rf"corpus.txt: 'Z' at character 952 \(line {line}, column 1\) is not in"):
        load_dataset(path, options=SHORT)
    data = load_dataset(path, options=replace(SHORT, unknown="skip"))
    assert data.skipped == 2
    assert "left out 2 characters that are not in the vocabulary" in data.notes
    assert "".join(data.scaling.text(data.test)) == text[int(1001 * 0.9) :].replace("Z", "")[:96]
    other = Vocabulary.of_text("Z" + TEXT)
    assert load_dataset(path, options=SHORT, vocabulary=other).scaling.vocabulary == other


def test_the_fingerprint_tells_texts_and_lengths_apart_without_a_copy(tmp_path):
    def sums(text, options=SHORT):
        return load_dataset(written(tmp_path, text), options=options).fingerprint

    base = sums(TEXT)
    swapped = TEXT[:899].replace("a", "\0").replace("b", "a").replace("\0", "b") + TEXT[899:]
    renamed = TEXT.replace("c", "{")  # codes in another order
    assert len({base, sums(swapped), sums(TEXT[:899] + "ß€"[TEXT[899] == "ß"] + TEXT[900:]), sums(renamed)}) == 4
    assert sums(TEXT, replace(SHORT, length=9)) != base
    assert sums(TEXT[:999] + "ß€"[TEXT[999] == "ß"]) == base  # the training part is the same
    assert sums(TEXT.replace("€", "☃")) != base  # the same codes, of another meaning
    long = load_dataset(written(tmp_path, TEXT * 1000), options=DataOptions(length=20_000))
    began = time.perf_counter()
    assert len(long.fingerprint) == 64  # of windows copied out it would take 18 GB
    assert time.perf_counter() - began < 1


def test_windows_move_as_tokens_and_stay_raw_in_training(tmp_path):
    data = load_dataset(written(tmp_path), options=SHORT)
    moved = placed(data.train[2:], torch.device("meta"))
    assert moved.shape == (891, 8)
    assert moved.stride() == (1, 1)
    assert moved.untyped_storage().nbytes() == 898
    here = placed(data.train[2:], torch.device("cpu"))
    assert torch.equal(here, data.train[2:])
    assert placed(data.test, torch.device("cpu")) is data.test
    wide = replace(data, train=data.train.flatten().int()[:900].unfold(0, 8, 1))
    for dataset in (data, wide):  # of int32, codes take as much room as examples, and would be copied out
        feed = Feed(dataset, "none", None, torch.device("cpu"))
        assert feed.examples.data_ptr() == dataset.train.data_ptr()
        rows = torch.tensor([4, 2])
        x0, _ = feed.batch(rows, feed.examples[rows])
        assert x0.dtype == torch.int64
        assert torch.equal(x0, dataset.train[rows].long())


def test_line_ends_and_marks_of_order(tmp_path):
    data = load_dataset(written(tmp_path, b"\xef\xbb\xbf" + b"ab\r\n" * 100), options=SHORT)
    assert data.scaling.vocabulary.symbols == "\n\rab"
    assert data.scaling.text(data.train[:1]) == ["ab\r\nab\r\n"]


@pytest.mark.parametrize(
    ("content", "changes", "error", "said"),
    [
        (b"", {}, DataError, "is empty; expected text in UTF-8"),
        (b"ab\ncaf\xe9 b", {}, DataError, r"the byte 0xe9 at place 6 \(line 2\) is not UTF-8; .*iconv"),
        (b"aaaa" * 50, {}, DataError, "'a' alone, expected one that varies"),
        (b"ab" * 50, {"length": 91}, DataError, "90 training characters; expected at least 92 .*smaller --length"),
        (b"ab" * 50, {"length": 11}, DataError, "10 held-out characters; expected at least 11"),
        (b"a", {}, DataError, "1 characters, none of them to train on"),
        (b"ab" * 50, {"length": 0}, ConfigurationError, "length=0, expected 1 or more"),
        (b"ab" * 50, {"holdout": 1.0}, ConfigurationError, "holdout=1.0"),
        (b"ab" * 50, {"vocabulary": "none.json"}, ConfigurationError, "there is no such file"),
        (b"ab" * 50, {"levels": 16}, ConfigurationError, "--levels 16 for text"),
        (b"ab" * 50, {"integers": "codes"}, ConfigurationError, "--integers codes, expected a .npy"),
        (b"ab" * 50, {"stream": "always"}, ConfigurationError, "cannot be streamed"),
        (b"ab" * 50, {"label": "x"}, ConfigurationError, "no columns of a table"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, content, changes, error, said):
    with pytest.raises(error, match=said):
        load_dataset(written(tmp_path, content), options=replace(SHORT, **changes))


def test_damaged_archives_and_missing_files(tmp_path):
    path = tmp_path / "x.txt.gz"
    for content in (b"no gzip", gzip.compress(TEXT.encode())[:-20]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x.txt.gz cannot be read \(.*\); expected text in UTF-8"):
            load_dataset(path, options=SHORT)
    with pytest.raises(DataError, match=r"none.txt does not exist; .*\.txt or \.txt\.gz text"):
        load_dataset(tmp_path / "none.txt")


def test_options_of_text_fit_text_only():
    for changes, option in (({"length": 8}, "length 8"), ({"vocabulary": "bytes"}, "vocabulary bytes")):
        with pytest.raises(ConfigurationError, match=f"digits: got --{option}, expected a text"):
            load_dataset("digits", options=DataOptions(**changes))


def test_bits_per_character_of_a_uniform_law_agree_over_vocabularies(tmp_path):
    # Uniform over bytes: 8 bits a byte, so 8 * bytes / characters a character, and the vocabulary must count these.
    data = load_dataset(written(tmp_path), options=replace(SHORT, vocabulary="bytes"))
    vocabulary, codes = data.scaling.vocabulary, tokens_under(data.train)
    bits = len(codes) * math.log2(len(vocabulary)) / vocabulary.characters(codes)
    assert bits == pytest.approx(8 * len(TEXT[:900].encode()) / 900)
    assert isinstance(data.scaling, Codes)
