"""Who is told what happens while a run trains: watchers, each shown the same numbers and pictures.

The record of a run is its log.jsonl; watchers show the same to other programs, and training never waits for one that fails.
Numbers are named as `ornstein.logs.scalars` names them: loss, gradient_norm, validation_loss/0.05, loss_by_level/t<0.125.
"""

import os
import secrets
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ornstein.errors import ConfigurationError, nearest
from ornstein.files import atomic_write

WATCHERS = ("tensorboard", "wandb")


class Watcher(Protocol):
    """What a run tells on the way, in the order of its steps."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers by name, as they are after `step` steps."""
        ...

    def images(self, step: int, name: str, images: Any) -> None:
        """One picture, an array or a tensor of uint8, (h, w) grey or (h, w, c), c of 1, 3 or 4."""
        ...

    def close(self) -> None:
        """Write out what is held back; nothing is told after."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard, shown by `tensorboard --logdir RUN`.

    Written out at each call, so that a run that is killed lost nothing told before. What an earlier process told of
    steps beyond `step` is not shown any more. Raises `ConfigurationError` where the package tensorboard is missing.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            import tensorboard  # noqa: F401  torch's writer without it has an error message of its own
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._writer.flush()  # it marks the steps beyond as void: at once, since the next call may be an hour away

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Watcher`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, step: int, name: str, images: Any) -> None:
        """See `Watcher`."""
        pixels = _pixels(images)
        self._writer.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        self._writer.flush()

    def close(self) -> None:
        """See `Watcher`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in RUN/wandb, kept on this machine unless the environment says WANDB_MODE=online.

    `wandb sync RUN/wandb/offline-run-*` sends it later. A resumed run goes on under the id that is kept in
    RUN/wandb/run-id. Curves are drawn over the number "step" and not over W&B's own counter, which cannot go back to the
    step of a checkpoint. Raises `ConfigurationError` where the package wandb is missing or does not start.
    """

    def __init__(self, folder: Path, config: dict[str, Any], name: str) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode != "online":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its crash reports go out even when offline
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from None
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "ornstein"),
                dir=str(folder),
                id=_kept_id(folder / "wandb" / "run-id"),
                name=name,
                config=config,
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(console="off", silent=True),
            )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # its errors share no base class
            raise ConfigurationError(
                f"Weights & Biases did not start ({_line(error)}); expected WANDB_MODE=offline, or online after `wandb login`"
            ) from None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Watcher`."""
        self._run.log({"step": step, **values})

    def images(self, step: int, name: str, images: Any) -> None:
        """See `Watcher`."""
        self._run.log({"step": step, name: self._wandb.Image(_pixels(images))})

    def close(self) -> None:
        """See `Watcher`."""
        self._run.finish()


class Quiet:
    """A watcher that cannot stop the training: at its first error it says so once on stderr, and tells no more.

    A full disk or a lost network is then a gap in what is shown; log.jsonl has all of it.
    """

    def __init__(self, watcher: Watcher, name: str) -> None:
        self._watcher, self._name, self._failed = watcher, name, False

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Watcher`."""
        self._tell("scalars", step, values)

    def images(self, step: int, name: str, images: Any) -> None:
        """See `Watcher`."""
        self._tell("images", step, name, images)

    def close(self) -> None:
        """See `Watcher`."""
        self._tell("close")

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self._watcher, method)(*arguments)
        except Exception as error:  # whatever it is, it is not worth the run
            self._failed = True
            print(
                f"ornstein: {self._name} is switched off, the training goes on ({_line(error)}); log.jsonl has all numbers",
                file=sys.stderr,
                flush=True,
            )


def open_watchers(names: tuple[str, ...], folder: Path, config: dict[str, Any], step: int = 0) -> list[Watcher]:
    """The watchers of a run by name, "tensorboard" or "wandb", each made so that it cannot stop the training later.

    folder: of the run. config: shown beside the curves. step: of the checkpoint that the run goes on from, 0 for a new one.

    Raises `ConfigurationError` on an unknown name, a missing package, or a place that cannot be written to.
    """
    for name in names:
        if name not in WATCHERS:
            raise ConfigurationError(
                f"unknown watcher '{name}', expected {' or '.join(WATCHERS)}{nearest(name, WATCHERS)}"
            )
    opened: list[Watcher] = []
    try:
        for name in dict.fromkeys(names):
            watcher = (
                TensorBoard(folder, step) if name == "tensorboard" else WeightsAndBiases(folder, config, folder.name)
            )
            opened.append(Quiet(watcher, name))
    except BaseException as error:
        for made in opened:
            made.close()
        if isinstance(error, OSError):
            raise ConfigurationError(
                f"{name} cannot write to {folder} ({_line(error)}); expected a folder with room that is yours"
            ) from None
        raise
    return opened


def _kept_id(path: Path) -> str:
    """The id in a file, which is made where there is none."""
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(secrets.token_hex(8))
    return path.read_text().strip()


def _pixels(images: Any) -> np.ndarray:
    return np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)


def _missing(package: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f'the package {package} is missing ({_line(error)}); pip install "ornstein[{package}]"')


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
