"""The command line on text, integer codes and mixed tables: what it writes, what it holds, what it refuses."""

import json

import numpy as np
import pytest

from ornstein.cli import main
from ornstein.data import Vocabulary

CORPUS = "the cat sat on the mat. a dog ran to the cat; the dog sat.\n"
TINY = ["--steps", "6", "--batch-size", "8", "--save-every", "0", "--seed", "3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(CORPUS * 40)
    return path


@pytest.fixture(scope="module")
def run(corpus):
    """A tiny run on text."""
    network = "Transformer(width=32, depth=1)"
    out = corpus.parent / "run"
    argv = ["train", corpus, "--length", 24, "--network", network, "--out", out, "--grid-every", 6, *TINY]
    assert main([str(a) for a in argv]) == 0
    return out


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_training_counts_tokens_and_writes_texts(run):
    shown = (run / "samples" / "step-00000006.txt").read_text()
    parts = shown.split("--- ")[1:]
    assert [part.split(" ---\n")[0] for part in parts] == ["1", "2", "3", "4"]
    assert all(len(part.split(" ---\n")[1]) == 25 for part in parts)
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    speeds = [line for line in logged if "loss" in line]
    assert speeds
    assert all("tokens_per_s" in line and "images_per_s" not in line for line in speeds)


def test_train_says_tokens(cli, corpus):
    said = cli("train", corpus, "--length", 16, "--network", "Transformer(width=32, depth=1)", "--json", *TINY).json
    assert said["tokens_per_s"] > 0
    assert "images_per_s" not in said


def test_train_alone_is_of_masks(cli, corpus):
    said = cli("train", corpus, "--dry-run")
    assert said.status == 0
    assert 'process = "absorbing"' in said.out
    assert "preset text" in said.out


def test_samples_are_on_stdout_and_in_the_file(cli, run, tmp_path):
    said = cli("sample", run, "-n", 2, "--out", tmp_path / "a.txt", "--calls", 4)
    assert said.status == 0
    assert said.out == (tmp_path / "a.txt").read_text()
    assert said.out.startswith("--- 1 ---\n")
    assert "\n--- 2 ---\n" in said.out
    assert "2 samples of step 6, 4 calls each" in said.err
    cli("sample", run, "-n", 2, "--out", tmp_path / "a.jsonl", "--calls", 4)
    texts = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert "".join(f"--- {i} ---\n{text}\n" for i, text in enumerate(texts, 1)) == said.out
    assert cli("sample", run, "-n", 2, "--out", tmp_path / "a.npz", "--calls", 4).status == 0
    codes = np.load(tmp_path / "a.npz")["samples"]
    vocabulary = Vocabulary.of_text(CORPUS)
    assert [vocabulary.decode(row) for row in codes.astype(np.int64)] == texts
    cli("sample", run, "-n", 2, "--out", tmp_path / "a.npy", "--calls", 4)
    assert (np.load(tmp_path / "a.npy") == codes).all()


def test_the_default_name_is_a_text(cli, run):
    said = cli("sample", run, "-n", 1, "--length", 5, "--json").json
    assert said["out"] == str(run / "samples-1.txt")
    assert said["calls"] == 5
    (run / "samples-1.txt").unlink()


def test_a_prompt_begins_every_sample(cli, run, tmp_path):
    said = cli(
        "sample", run, "-n", 5, "--length", 40, "--prompt", "the cat", "--out", tmp_path / "a.txt", "--json"
    ).json
    assert all(text.startswith("the cat") and len(text) == 40 for text in said["texts"])
    assert len(set(said["texts"])) == 5
    assert said["calls"] == 33
    assert said["prompt"] == "the cat"


def test_a_template_with_another_blank(cli, run, tmp_path):
    argv = ["--template", "the ##t_ on", "--blank", "#", "--unknown", "skip", "--out", tmp_path / "b.txt", "--json"]
    said = cli("sample", run, *argv)
    assert "left out 1 characters of --template" in said.err
    assert all((text[:4], text[6:]) == ("the ", "t on") for text in said.json["texts"])


def test_a_template_holds_all_but_its_blanks(cli, run, tmp_path):
    said = cli("sample", run, "-n", 6, "--template", "the ___ on a _at", "--out", tmp_path / "a.txt", "--json").json
    assert said["calls"] == 4
    texts = said["texts"]
    assert all((text[:4], text[7:13], text[14:]) == ("the ", " on a ", "at") and len(text) == 16 for text in texts)
    assert len({text[4:7] for text in texts}) > 1
    assert not any("_" in text for text in texts)


def test_samples_are_functions_of_the_seed_alone(cli, run, tmp_path):
    base = ["sample", run, "-n", 5, "--calls", 6, "--json", "--prompt", "a dog"]
    one = cli(*base, "--out", tmp_path / "1.txt").json["texts"]
    two = cli(*base, "--out", tmp_path / "2.txt", "--batch-size", 2).json["texts"]
    other = cli(*base, "--out", tmp_path / "3.txt", "--seed", 1).json["texts"]
    assert one == two != other


def test_the_coldest_samples_do_not_vary_at_one_call(cli, run, tmp_path):
    base = ["sample", run, "-n", 4, "--calls", 1, "--json"]
    cold = cli(*base, "--top-p", 1e-9, "--out", tmp_path / "1.txt").json["texts"]
    assert len(set(cold)) == 1  # the likeliest token everywhere
    assert cli(*base, "--temperature", 1e-7, "--out", tmp_path / "2.txt").json["texts"] == cold
    assert len(set(cli(*base, "--out", tmp_path / "3.txt").json["texts"])) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "the Cat"], ["'C' at character 5", "is not in the vocabulary", "--unknown skip"]),
        (["--template", "a_ _\nXb"], ["'X' at character 6 (line 2, column 1)"]),
        (["--prompt", "the cat", "--length", 3], "a --prompt of 7 tokens, expected 1 to 3"),
        (["--template", "the cat"], "without the blank '_'"),
        (["--template", "a_", "--blank", "##"], "expected one sign"),
        (["--template", "a_", "--length", 9], "--length with --template"),
        (["--template", "a_", "--prompt", "a"], "both --prompt and --template"),
        (["--blank", "#"], "--blank without --template"),
        (["--unknown", "skip"], "--unknown without --prompt or --template"),
        (["--length", 0], "--length 0, expected at least 1"),
        (["--sampler", "Heun"], "a sampler of numbers"),
        (["--prompt", "the", "--sampler", "Multistep"], "a sampler of numbers"),
        (["--guidance", 2], "guidance for a model of categories"),
        (["--threshold", 1], "--threshold for a model of categories"),
        (["--init", "a.png"], ["--init for a model of categories", "--prompt or --template"]),
        (["--reference", "a.png"], "--reference for a model of categories"),
        (["--upscale", "a.png"], "--upscale for a model of categories"),
        (["--interpolate", "a.png", "b.png"], "--interpolate for a model of categories"),
        (["--grid", "karras"], "--grid karras for a model of categories"),
        (["--temperature", 0], "--temperature 0, expected above 0"),
        (["--top-p", 1.5], "--top-p 1.5, expected above 0 and at most 1"),
        (["--out", "a.png"], "for samples that are texts, expected FILE.txt"),
    ],
)
def test_bad_options_of_samples(fails, run, options, said):
    before = files(run)
    fails("sample", run, *options, said=said)
    assert files(run) == before


def test_likelihood_in_bits(cli, run):
    said = cli("likelihood", run, "--json", "-n", 6).json
    assert said["elbo"]["calls"] == 9
    assert said["settings"]["steps"] == "continuous time"
    assert said["bits_per_token"] == pytest.approx(said["elbo"]["bits_per_dim"])
    assert said["bits_per_token_error"] == pytest.approx(said["elbo"]["bits_error"], rel=0.02)
    assert said["bits_per_character"] == pytest.approx(said["bits_per_token"])
    assert said["tokens"] == said["characters"] == 6 * 24
    vocabulary = len(set(CORPUS))
    assert 2 < said["bits_per_token"] < np.log2(vocabulary) + 1  # hardly trained
    assert "bits per character" in cli("likelihood", run, "-n", 2, "--steps", 4).out


def test_bits_per_character_of_bytes(cli, tmp_path):
    """Of text in which each character takes two bytes: twice the bits per token."""
    (tmp_path / "a.txt").write_text("äöüß" * 100)
    argv = ["--length", 16, "--vocabulary", "bytes", "--network", "Transformer(width=32, depth=1)", "--out", "r", *TINY]
    assert cli("train", "a.txt", *argv).status == 0
    said = cli("likelihood", "r", "--json").json
    assert said["bits_per_character"] == pytest.approx(2 * said["bits_per_token"])
    assert said["bits_per_character_error"] == pytest.approx(2 * said["bits_per_token_error"])


def test_likelihood_of_another_text(cli, fails, run, tmp_path):
    (tmp_path / "other.txt").write_text(CORPUS * 9 + "THE cat. ")
    fails("likelihood", run, "--data", "other.txt", said=[f"'T' at character {9 * len(CORPUS) + 1}", "--unknown skip"])
    said = cli("likelihood", run, "--data", "other.txt", "--unknown", "skip", "--json")
    assert "left out 3 characters" in said.err
    assert not said.json["same_data_as_trained_on"]


def test_bad_options_of_likelihood_and_bench(fails, run):
    before = files(run)
    fails("likelihood", run, "--bound", "ode", said="which have no ODE; expected --bound elbo")
    fails("likelihood", run, "--draws", 2, said="--draws with --bound elbo")
    fails("likelihood", run, "--data", "digits", said="of another kind")
    fails("likelihood", run, "--terms", 0, said="in continuous time")
    fails("bench", run, said="a model of categories")
    assert files(run) == before


def test_evaluate(cli, fails, run, tmp_path):
    said = cli("evaluate", run, "-n", 6, "--calls", 4, "--json").json
    names = ["total_variation_1", "total_variation_2", "total_variation_3", "known_words", "longest_copy"]
    assert set(said["measures"]) <= set(names)
    assert set(names) - set(said["measures"]) <= {"known_words"}
    assert 0 < said["measures"]["total_variation_1"]["value"] <= said["measures"]["total_variation_3"]["value"] <= 1
    assert said["calls"] == 4
    cli("sample", run, "-n", 6, "--calls", 4, "--out", tmp_path / "a.jsonl")
    read = cli("evaluate", run, "--samples", "a.jsonl", "--json").json
    assert read["measures"].keys() == said["measures"].keys()
    (tmp_path / "bad.jsonl").write_text('"the cat"\n"the"\n')
    fails("evaluate", run, "--samples", "bad.jsonl", said="expected texts of one length")
    fails("evaluate", run, "--guidance", 2, said="guidance for a model of categories")


def test_inspect(cli, run):
    said = cli("inspect", run)
    assert "Categorical(Absorbing(categories=" in said.out
    assert "a vocabulary of" in said.out
    assert "windows of 24 tokens" in said.out
    assert cli("inspect", run, "--json").json["tokens_per_s"] > 0


def test_a_model_of_numbers_takes_no_options_of_text(cli, fails, tmp_path):
    argv = ["--network", "MLP(width=8, depth=1)", "--preset", "none", "--out", "r", *TINY]
    assert cli("train", "rings", *argv).status == 0
    before = files(tmp_path)
    for option, value in (("--length", 9), ("--prompt", "a"), ("--template", "_"), ("--blank", "#")):
        fails("sample", "r", option, value, said=f"{option} for a model that is not of text")
    fails("sample", "r", "--temperature", 0.5, said="--temperature for a model with numbers")
    fails("likelihood", "r", "--unknown", "skip", said="--unknown for a model that is not of text")
    fails(
        "train",
        "rings",
        "--process",
        "absorbing",
        "--out",
        "q",
        said="expected text, images of levels or integer codes",
    )
    assert files(tmp_path) == before


def test_bad_corpora(fails, corpus, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 99)
    (tmp_path / "short.txt").write_text("ab" * 50)
    fails("train", "empty.txt", said="is empty")
    fails("train", "latin.txt", said="is not UTF-8")
    fails("train", "short.txt", said="expected at least 257 for windows of 256: give a smaller --length")
    gaussian = ["--process", "gaussian", "--network", "auto", "--length", 24]
    fails("train", corpus, *gaussian, said=["a process of numbers", "--process absorbing"])
    assert not (tmp_path / "runs").exists()


def test_arrays_of_codes(cli, fails, tmp_path):
    """Codes of a table of matrices: at most its T steps."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "codes.npy", rng.integers(0, 5, (200, 6)))
    argv = [
        "--network",
        "Transformer(width=32, depth=1)",
        "--process",
        "DiscretisedGaussian(length=8)",
        "--out",
        "r",
        *TINY,
    ]
    assert cli("train", "codes.npy", "--preset", "none", *argv).status == 0
    said = cli("sample", "r", "-n", 7, "--json").json
    assert said["calls"] == 8
    assert said["shape"] == [7, 6]
    assert said["out"].endswith(".npz")
    codes = np.load(said["out"])["samples"]
    assert codes.min() >= 0
    assert codes.max() < 5
    fails("sample", "r", "--steps", 9, said="9 steps of a table of 8")
    assert cli("likelihood", "r", "--json", "-n", 4).json["settings"]["steps"] == 8
    assert set(cli("evaluate", "r", "-n", 9, "--json").json["measures"]) == {
        "variation_of_places",
        "variation_of_pairs",
    }
    fails("sample", "r", "--prompt", "a", said="a model that is not of text")
