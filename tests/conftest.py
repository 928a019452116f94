"""What all tests share: one thread (results and timings that do not depend on the machine's cores), data, command lines."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ornstein.cli import main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "laws"))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data sets beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder


class Said:
    """What one command line came to."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*argv):
        capsys.readouterr()
        status = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Said(status, out, err)

    return run


@pytest.fixture
def fails(cli):
    """Run a command line that must end in status 2, with the words it must say on stderr in one or two lines."""

    def run(*argv, said):
        result = cli(*argv)
        assert result.status == 2
        assert result.out == ""
        last = [line for line in result.err.splitlines() if line.startswith("ornstein: ")]
        assert len(last) == 1
        assert result.err.splitlines()[-1] == last[0]
        for words in [said] if isinstance(said, str) else said:
            assert words in last[0]
        return result

    return run
