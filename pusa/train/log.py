"""The log of a training: two CSV files and TensorBoard's, which go on where a stopped run ended."""

import csv
import shutil
from pathlib import Path

from pusa.records import atomic

TRAINING_COLUMNS = (
    "iteration",
    "loss",
    "learning_rate",
    "gradient_norm",
    "clips_per_second",
    "memory_gib",  # of the process that uses most: allocated on a GPU at most, resident on a CPU
    "elapsed_seconds",  # of all attempts together, from the start of their processes
)
VALIDATION_COLUMNS = ("iteration", "loss", "value")


class TrainLog:
    """``training.csv`` and ``validation.csv`` in one folder, TensorBoard's files in another.

    Opened to go on after iteration ``start``: what an earlier attempt logged beyond it is cut.

    Raises:
        ValueError: if the files do not reach ``start``.
    """

    def __init__(self, folder: Path, tensorboard: Path, *, start: int):
        from torch.utils.tensorboard import SummaryWriter  # needed by process 0 alone

        training = folder / "training.csv"
        logged = _read(training)
        if start > len(logged):
            raise ValueError(
                f"{training} ends at iteration {len(logged)}, before the checkpoint's {start}; "
                f"delete the state folder {folder} to train anew"
            )
        self.elapsed_before = float(logged[-1][-1]) if logged else 0.0
        if start == 0:
            shutil.rmtree(tensorboard, ignore_errors=True)
        self._files = [
            _reopen(training, TRAINING_COLUMNS, start),
            _reopen(folder / "validation.csv", VALIDATION_COLUMNS, start),
        ]
        self._training, self._validation = (csv.writer(file) for file in self._files)
        self._board = SummaryWriter(tensorboard, purge_step=start + 1)

    def training(self, iteration: int, **values: float) -> None:
        """Log an iteration: a value for each of `TRAINING_COLUMNS`."""
        self._training.writerow([iteration, *(f"{values[n]:.6g}" for n in TRAINING_COLUMNS[1:])])
        for name, value in values.items():
            self._board.add_scalar(f"training/{name}", value, iteration)

    def validation(self, iteration: int, losses: dict[str, float]) -> None:
        """Log the validation losses after an iteration, 0 being before the first."""
        for name, value in losses.items():
            self._validation.writerow([iteration, name, f"{value:.6f}"])
            self._board.add_scalar(f"validation/{name}", value, iteration)

    def flush(self) -> None:
        """Write out what TensorBoard's files still lack; the others have each line at once."""
        self._board.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._board.close()
        for file in self._files:
            file.close()


def _read(file: Path) -> list[list[str]]:
    """The complete rows of a log, without its header; a killed process may leave half a row."""
    if not file.is_file():
        return []
    *lines, _ = file.read_text().split("\n")
    return list(csv.reader(lines))[1:]


def _reopen(file: Path, columns: tuple[str, ...], start: int):
    """Cut a log behind iteration ``start``, and open it for more rows."""
    rows = [row for row in _read(file) if int(row[0]) <= start]
    with atomic(file) as partial, partial.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return file.open("a", newline="", buffering=1)
