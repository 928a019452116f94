"""Measures of text and of codes against counting by hand, and against searching for every run."""

import itertools

import pytest
import torch

from ornstein.data import Vocabulary
from ornstein.errors import ConfigurationError, DataError
from ornstein.metrics import evaluate_codes, evaluate_text
from ornstein.metrics.distances import total_variation
from ornstein.metrics.text import longest_copy, share_known


def windows(text, length, vocabulary):
    """All windows of a text, as a view."""
    return vocabulary.encode(text).unfold(0, length, 1)


def test_variation_of_two_laws():
    assert total_variation(torch.tensor([1, 2]), torch.tensor([3, 2, 3, 3])) == pytest.approx(0.75)
    assert total_variation(torch.tensor([1, 1]), torch.tensor([1])) == 0
    assert total_variation(torch.tensor([1]), torch.tensor([2, 2])) == 1


def test_variation_of_n_grams_is_that_of_counts_by_hand():
    words = Vocabulary.of_text("abc")
    samples, test = ["abab", "abcc"], ["abca", "bcab", "ccca"]
    train = windows("abcabcabbacc", 4, words)
    got = evaluate_text(
        torch.stack([words.encode(x) for x in samples]),
        torch.stack([words.encode(x) for x in test]),
        train,
        vocabulary=words,
        splits=3,
    )
    for n in (1, 2, 3):
        shares = []
        for texts in (samples, test):
            found = [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]
            shares.append({gram: found.count(gram) / len(found) for gram in found})
        grams = shares[0].keys() | shares[1].keys()
        truth = sum(abs(shares[0].get(g, 0) - shares[1].get(g, 0)) for g in grams) / 2
        assert got[f"total_variation_{n}"].value == pytest.approx(truth)
    assert got["total_variation_2"].n == 2
    assert got["total_variation_2"].against == 3


def longest_by_search(row, text):
    """The longest run of a row that is in the text, tried one by one."""
    runs = [row[i:j] for i, j in itertools.combinations(range(len(row) + 1), 2)]
    return max((len(run) for run in runs if run in text), default=0)


def test_longest_copy_is_the_upper_median_of_all_searches():
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(4, (400,), generator=generator)
    rows = torch.randint(4, (9, 30), generator=generator)
    rows[0, 3:24] = text[100:121]
    for count in (1, 4, 8, 9):
        plain = "".join(map(str, text.tolist()))
        found = sorted(longest_by_search("".join(map(str, row.tolist())), plain) for row in rows[:count])
        assert longest_copy(rows[:count], text) == found[count // 2]
    assert longest_copy(text[None, 50:90], text) == 40  # all of it
    assert longest_copy(torch.full((1, 5), 9), text) == 0


def test_known_words_leave_out_those_cut_by_the_ends():
    words = Vocabulary.of_bytes()
    row = words.encode("ing the cat's xyzzy tree no")  # "ing" and "no" may be parts of words
    assert share_known(words, row[None], {"the", "cat's", "tree", "ing"}) == pytest.approx(3 / 4)
    assert share_known(words, words.encode("...")[None], {"a"}) is None


def test_real_text_in_place_of_samples_has_ratio_one():
    words = Vocabulary.of_text("abcdefgh ")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(9, (6000,), generator=generator)
    train, test = tokens[:5000].unfold(0, 20, 1), tokens[5000:].reshape(50, 20)
    fresh = torch.randint(9, (50, 20), generator=generator)
    got = evaluate_text(fresh, test, train, vocabulary=words)
    for n in (1, 2, 3):
        assert got[f"total_variation_{n}"].ratio == pytest.approx(1, abs=0.25)
    again = evaluate_text(fresh, test, train, vocabulary=words)
    assert again == got


def test_codes_are_compared_by_places_and_pairs():
    test = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]])
    samples = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])  # the same places, none of the pairs
    got = evaluate_codes(samples, test, test, levels=2)
    assert got["variation_of_places"].value == 0
    assert got["variation_of_pairs"].value == 1
    assert got["variation_of_pairs"].reference == 0
    apart = evaluate_codes(torch.tensor([[0, 2]] * 4), torch.tensor([[1, 0]] * 4), test, levels=3)
    assert apart["variation_of_pairs"].value == 1  # 0 2 and 1 0 are one key to base 2
    thirds = evaluate_codes(torch.tensor([[0, 0], [0, 1]]), torch.tensor([[0, 2], [1, 0]]), test, levels=3)
    assert thirds["variation_of_places"].value == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_refusals():
    words = Vocabulary.of_text("ab")
    x = torch.zeros(3, 4, dtype=torch.long)
    with pytest.raises(DataError, match=r"got samples of shape .*expected tokens"):
        evaluate_text(x[:0], x, x, vocabulary=words)
    with pytest.raises(ConfigurationError, match="splits=0; expected at least 1"):
        evaluate_text(x, x, x, vocabulary=words, splits=0)
    with pytest.raises(DataError, match="expected one shape for all"):
        evaluate_codes(x, x[:, :2], x, levels=2)
