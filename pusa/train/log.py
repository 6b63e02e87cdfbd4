"""The log of a training: two CSV files and TensorBoard's, which go on where a stopped run ended."""

import csv
import os
import shutil
from pathlib import Path

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

        folder.mkdir(parents=True, exist_ok=True)
        training, validation = folder / "training.csv", folder / "validation.csv"
        rows = _read(training, TRAINING_COLUMNS)
        if start > len(rows):
            raise ValueError(
                f"{training} ends at iteration {len(rows)}, before the checkpoint's {start}; "
                f"delete the state folder {folder} to train anew"
            )
        self.elapsed_before = float(rows[-1][-1]) if rows else 0.0
        _write(training, TRAINING_COLUMNS, rows[:start])
        _write(
            validation,
            VALIDATION_COLUMNS,
            [row for row in _read(validation, VALIDATION_COLUMNS) if int(row[0]) <= start],
        )
        if start == 0:
            shutil.rmtree(tensorboard, ignore_errors=True)
        self._files = [file.open("a", newline="", buffering=1) for file in (training, validation)]
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


def _read(file: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """The complete rows of a log, without its header; a killed process may leave half a row."""
    if not file.is_file():
        return []
    lines = file.read_text().splitlines(keepends=True)
    rows = csv.reader(line for line in lines if line.endswith("\n"))
    return [row for row in rows if len(row) == len(columns)][1:]


def _write(file: Path, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    partial = file.with_name(f".partial-{file.name}")
    with partial.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    os.replace(partial, file)
