"""Vocabularies: text <-> codes 0 .. K - 1.

A discrete process knows no letters, only K states. A vocabulary numbers the symbols of a text, and back:

    codes = encode(text),    text = decode(codes),    0 <= codes < K = len(vocabulary).

Three kinds. *Characters*: the characters (Unicode code points) of the training text, sorted; one code for each, so bits per token
are bits per character. *Bytes*: the 256 bytes of UTF-8; any text can be written, and a character takes 1 to 4 codes. *Tokens*: a
tokenizer.json of Hugging Face `tokenizers`, whose codes stand for pieces of words. Bits per token of different kinds cannot be
compared; bits per character can, and `characters` counts them: bits/character = bits/token * tokens / characters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import ConfigurationError, DataError, nearest

KINDS = ("characters", "bytes", "tokens")
_REMEDY = "leave such characters out by --unknown skip"


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a text, numbered 0 .. K - 1 with K = len(vocabulary).

    kind: "characters", "bytes" or "tokens"; also what one code is called.
    symbols: of characters, all of them in ascending order of code points; else "".
    tokenizer: of tokens, the content of a tokenizer.json file; else "". It is kept here, so that a run needs no such file.

    Raises ConfigurationError where these do not go together. Made by `of_text`, `of_bytes`, `of_file`, or `named`.
    """

    kind: str
    symbols: str = ""
    tokenizer: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"got a vocabulary of {self.kind!r}, expected one of {', '.join(KINDS)}")
        if bool(self.symbols) != (self.kind == "characters") or bool(self.tokenizer) != (self.kind == "tokens"):
            raise ConfigurationError(
                f"got a vocabulary of {self.kind} with {len(self.symbols)} characters and a tokenizer of "
                f"{len(self.tokenizer)}, expected what belongs to its kind and nothing else: use Vocabulary.of_text, "
                "of_bytes or of_file"
            )
        if list(self.symbols) != sorted(set(self.symbols)):
            raise ConfigurationError(
                f"got the characters {self.symbols[:40]!r}, expected each once and in order: use Vocabulary.of_text"
            )

    @classmethod
    def of_text(cls, text: str) -> "Vocabulary":
        """The characters of `text`, sorted by code point. Raises DataError where it has none."""
        points = np.unique(_points(text))
        if not len(points):
            raise DataError("got a text without characters, expected one to make a vocabulary of: give another file")
        return cls("characters", _text(points))

    @classmethod
    def of_bytes(cls) -> "Vocabulary":
        """The 256 bytes: a text is its UTF-8 encoding."""
        return cls("bytes")

    @classmethod
    def of_file(cls, path: str | Path) -> "Vocabulary":
        """The tokens of a tokenizer.json. Raises ConfigurationError where `tokenizers` is not installed or cannot read it."""
        path = Path(path).expanduser()
        try:
            content = json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"{path} cannot be read as a tokenizer ({reason}), expected a tokenizer.json as written by Tokenizer.save"
            ) from error
        vocabulary = cls("tokens", tokenizer=content)
        _ = vocabulary._tokens
        return vocabulary

    @classmethod
    def named(cls, name: str, text: str) -> "Vocabulary":
        """What --vocabulary says: "characters" (those of `text`), "bytes", or the path of a tokenizer.json.

        Raises ConfigurationError where it is none of them.
        """
        if name == "characters":
            return cls.of_text(text)
        if name == "bytes":
            return cls.of_bytes()
        if not Path(name).expanduser().is_file():
            raise ConfigurationError(
                f"got vocabulary={name!r}{nearest(name, KINDS[:2])}; expected characters, bytes, or a tokenizer.json file, "
                "and there is no such file"
            )
        return cls.of_file(name)

    def __len__(self) -> int:
        if self.kind == "characters":
            return len(self.symbols)
        return 256 if self.kind == "bytes" else self._tokens.get_vocab_size(with_added_tokens=True)

    def encode(
        self, text: str, unknown: Literal["error", "skip"] = "error", *, where: str = "the text", before: str = ""
    ) -> Tensor:
        """The codes of `text`, int64 (n,).

        unknown: what to do about a character that the vocabulary lacks: raise DataError, or leave it out; `unknown(text)`
            counts those. where: what the text is called in messages. before: the text that precedes it there, so that the
            place in a message is that in the whole.
        """
        if self.kind == "bytes":
            return torch.from_numpy(np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int64))
        codes, lost = self._encoded(text)
        if lost and unknown == "error":
            first, end = lost[0]
            raise DataError(f"{where}: {self._lacks(text[first:end], before + text[:first])}")
        return torch.from_numpy(codes)

    def unknown(self, text: str) -> int:
        """How many characters of `text` the vocabulary lacks."""
        return 0 if self.kind == "bytes" else sum(end - first for first, end in self._encoded(text)[1])

    def decode(self, codes: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of codes (n,). Bytes that are no UTF-8, as at the ends of a window, become U+FFFD.

        Raises DataError, naming the first with its place, for a code outside 0 .. K - 1, such as a mask that is left.
        """
        values = self._checked(codes)
        if self.kind == "characters":
            return _text(self._sorted[values])
        if self.kind == "bytes":
            return values.astype(np.uint8).tobytes().decode(errors="replace")
        return self._tokens.decode(values.tolist(), skip_special_tokens=False)

    def characters(self, codes: Tensor | np.ndarray | Sequence[int]) -> int:
        """How many characters codes (..., n) stand for, over all rows: for bits per character.

        Of bytes those count that begin a character, so that counts of consecutive windows add up; of tokens, the characters of
        each row's text, where a character that is split by the end of a row counts in both.
        """
        if self.kind == "tokens":
            rows = np.asarray(torch.as_tensor(codes).cpu())
            return sum(len(self.decode(row)) for row in rows.reshape(-1, rows.shape[-1]))
        values = self._checked(torch.as_tensor(codes).flatten())
        return len(values) if self.kind == "characters" else int(((values & 0xC0) != 0x80).sum())

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, the tokenizer's own content as JSON too; `from_dict` gives back an equal vocabulary."""
        if self.kind == "tokens":
            return {"kind": self.kind, "tokenizer": json.loads(self.tokenizer)}
        return {"kind": self.kind, "symbols": self.symbols}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Vocabulary":
        """The vocabulary that `to_dict` wrote. Raises ConfigurationError where fields are missing or unknown."""
        if values.get("kind") == "tokens" and set(values) == {"kind", "tokenizer"}:
            return cls("tokens", tokenizer=json.dumps(values["tokenizer"], ensure_ascii=False))
        if set(values) != {"kind", "symbols"}:
            raise ConfigurationError(
                f"got a vocabulary with the fields {sorted(values)}, expected kind and symbols, or kind and tokenizer"
            )
        return cls(values["kind"], values["symbols"])

    @cached_property
    def _sorted(self) -> np.ndarray:
        return _points(self.symbols)

    @cached_property
    def _tokens(self) -> Any:
        """The `tokenizers.Tokenizer`; it neither cuts nor pads, whatever the file says."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigurationError(
                f"a vocabulary of tokens needs the package tokenizers ({error}), expected it to be installed: "
                'pip install "ornstein[text]"'
            ) from error
        try:
            tokenizer = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the package raises bare Exception
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"the tokenizer cannot be read ({reason}), expected a tokenizer.json as written by Tokenizer.save"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _unknown_code(self) -> int | None:
        """The code of the token that stands for what the tokenizer does not know, where it has one."""
        model = json.loads(self.tokenizer)["model"]
        name = model.get("unk_token")
        return model.get("unk_id") if name is None else self._tokens.token_to_id(name)

    def _encoded(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Codes (n,) of what is known, and where the unknown is: first and end of each stretch of characters."""
        if self.kind == "characters":
            points = _points(text)
            codes = np.searchsorted(self._sorted, points)
            known = self._sorted[np.minimum(codes, len(self._sorted) - 1)] == points
            return codes[known].astype(np.int64), [(i, i + 1) for i in np.flatnonzero(~known).tolist()]
        tokenizer = self._tokens
        try:
            found = tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the package raises bare Exception
            reason = " ".join(str(error).split())
            raise DataError(
                f"the tokenizer refuses the text ({reason}), expected one that has a token for the unknown"
            ) from error
        ids = np.array(found.ids, dtype=np.int64)
        spans = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)
        known = ids != (-1 if self._unknown_code is None else self._unknown_code)
        # A character is unknown where no known token covers it; white space may fall between tokens by design.
        steps = np.zeros(len(text) + 1, dtype=np.int64)
        np.add.at(steps, spans[known, 0], 1)
        np.add.at(steps, spans[known, 1], -1)
        bare = [i for i in np.flatnonzero(steps.cumsum()[:-1] == 0).tolist() if not text[i].isspace()]
        if bare and self._unknown_code is None:
            # Of what it drops without a word the package does not count the places: later ones are off.
            dropped = {c for c in set(text) if not c.isspace() and self._drops(c)}
            bare = [i for i, c in enumerate(text) if c in dropped] or bare
        return ids[known], _stretches(bare)

    def _drops(self, symbol: str) -> bool:
        """Whether the tokenizer makes nothing of a character."""
        try:
            return not self._tokens.encode(symbol, add_special_tokens=False).ids
        except Exception:  # a bare one again, from those that know whole words only
            return False

    def _lacks(self, symbol: str, before: str) -> str:
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        shown = self.symbols if len(self.symbols) <= 80 else self.symbols[:80] + " ..."
        what = f"one of its {len(self)} {self.kind}" + (f" {shown!r}" if shown else "")
        return (
            f"{symbol!r} at character {len(before) + 1} (line {line}, column {column}) is not in the vocabulary, expected "
            f"{what}: {_REMEDY}"
        )

    def _checked(self, codes: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
        values = torch.as_tensor(codes).cpu().numpy()
        if values.ndim != 1 or (values.dtype.kind not in "iu" and len(values)):
            raise DataError(f"got codes of type {values.dtype} and shape {values.shape}, expected integers (n,)")
        wrong = (values < 0) | (values >= len(self))
        if wrong.any():
            place = int(wrong.argmax())
            raise DataError(
                f"got the code {values[place]} at place {place} (counted from 0), expected 0 to {len(self) - 1}: the "
                f"{len(self)} {self.kind} of the vocabulary"
            )
        return values.astype(np.int64)


def _points(text: str) -> np.ndarray:
    """The code points of a text, uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _text(points: np.ndarray) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass")


def _stretches(places: list[int]) -> list[tuple[int, int]]:
    """Ascending places as runs: the first of each, and its end."""
    found: list[tuple[int, int]] = []
    for i in places:
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found
