"""Who is told what happens while a run trains: watchers, each shown the same numbers and pictures.

The record of a run is its log.jsonl; watchers show the same to other programs, and training never waits for one that fails.
Numbers are named as `ornstein.logs.scalars` names them: loss, gradient_norm, validation_loss/0.05, loss_by_level/t<0.125.
"""

import io
import os
import secrets
import sys
import time
from importlib import import_module
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

    torch's SummaryWriter is not used: it writes in a thread, which on a full disk dies with a traceback.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        place = folder / "tensorboard" / f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(open(place, "ab"))  # noqa: SIM115  closed by `close`
        self._write(self._event(file_version="brain.Event:2"))
        if step:  # a start at some step makes the events of files before this one void from there on
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(self._event(step=step + 1, session_log=log))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Watcher`."""
        one = self._summary.Value
        summary = self._summary(value=[one(tag=name, simple_value=value) for name, value in values.items()])
        self._write(self._event(step=step, summary=summary))

    def images(self, step: int, name: str, images: Any) -> None:
        """See `Watcher`."""
        from PIL import Image

        pixels, png = _pixels(images), io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG")
        height, width, channels = (*pixels.shape, 1)[:3]
        image = self._summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=png.getvalue()
        )
        summary = self._summary(value=[self._summary.Value(tag=name, image=image)])
        self._write(self._event(step=step, summary=summary))

    def close(self) -> None:
        """See `Watcher`."""
        self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


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


def require(names: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` on an unknown watcher or one whose package is missing, before anything is made for them."""
    _check_names(names)
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise _missing(name, error) from None


def open_watchers(names: tuple[str, ...], folder: Path, config: dict[str, Any], step: int = 0) -> list[Watcher]:
    """The watchers of a run by name, "tensorboard" or "wandb", each made so that it cannot stop the training later.

    folder: of the run. config: shown beside the curves. step: of the checkpoint that the run goes on from, 0 for a new one.

    Raises `ConfigurationError` on an unknown name, a missing package, or a place that cannot be written to.
    """
    _check_names(names)
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


def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in WATCHERS:
            raise ConfigurationError(
                f"unknown watcher '{name}', expected {' or '.join(WATCHERS)}{nearest(name, WATCHERS)}"
            )


def _kept_id(path: Path) -> str:
    """The id in a file, which is made where there is none."""
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(secrets.token_hex(8))
    return path.read_text().strip()


def _pixels(images: Any) -> np.ndarray:
    """The picture as an array (h, w) or (h, w, c); one channel of grey needs no axis."""
    pixels = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _missing(package: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f'the package {package} is missing ({_line(error)}); pip install "ornstein[{package}]"')


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
