import math

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pusa.train.log import TRAINING_COLUMNS, TrainLog


def write(folder, iterations, start=0):
    """Log some iterations, each with values that tell it from the others."""
    with TrainLog(folder, folder / "tensorboard", start=start) as log:
        for i in iterations:
            log.training(i, **{name: i + 0.5 for name in TRAINING_COLUMNS[1:]})
            log.validation(i, {"asynchronous": i / 3})
        return log


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_every_value_is_in_both_logs(tmp_path):
    write(tmp_path, [1, 2])
    table = pd.read_csv(tmp_path / "training.csv")
    assert tuple(table.columns) == TRAINING_COLUMNS
    assert list(table["iteration"]) == [1, 2]
    assert (table.drop(columns="iteration").T == [1.5, 2.5]).all(axis=None)
    for name in TRAINING_COLUMNS[1:]:
        assert scalars(tmp_path, f"training/{name}") == [(1, 1.5), (2, 2.5)]
    validation = pd.read_csv(tmp_path / "validation.csv")
    assert validation.values.tolist() == [
        [1, "asynchronous", 0.333333],
        [2, "asynchronous", 0.666667],
    ]
    steps, values = zip(*scalars(tmp_path, "validation/asynchronous"), strict=True)
    assert steps == (1, 2)
    assert math.isclose(values[0], 1 / 3, rel_tol=1e-6)


def test_goes_on_after_the_checkpoint(tmp_path):
    """What was logged after it is cut, also half a row of a killed process."""
    write(tmp_path, [1, 2, 3, 4])
    with (tmp_path / "training.csv").open("a") as file:
        file.write("5,0.1")
    log = write(tmp_path, [3, 4, 5], start=2)
    assert log.elapsed_before == 4.5  # time that was lost counts
    for name in ("training", "validation"):
        assert list(pd.read_csv(tmp_path / f"{name}.csv")["iteration"]) == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path, "training/loss")] == [1, 2, 3, 4, 5]


def test_starts_anew(tmp_path):
    write(tmp_path, [1, 2, 3])
    (tmp_path / "training.csv").unlink()
    write(tmp_path, [1])
    for name in ("training", "validation"):
        assert list(pd.read_csv(tmp_path / f"{name}.csv")["iteration"]) == [1]
    assert scalars(tmp_path, "training/loss") == [(1, 1.5)]


def test_log_that_ends_before_the_checkpoint(tmp_path):
    write(tmp_path, [1, 2])
    before = (tmp_path / "training.csv").read_bytes()
    with pytest.raises(ValueError, match=r"training\.csv ends at iteration 2, before .* 3; delete"):
        write(tmp_path, [], start=3)
    assert (tmp_path / "training.csv").read_bytes() == before
