import pandas as pd
import pytest

from pusa.report.costs import describe_costs, measure_costs
from pusa.train.log import TRAINING_COLUMNS

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time"
MAIN = "pusa-rank64-seed0"


@pytest.fixture
def benchmarks(tmp_path):
    """Half an hour of caching, two trainings, videos of two settings in two shards each."""
    seconds = {
        "cache_latents": 1800,
        f"train/{MAIN}": 7200,
        "train/control-rank64-seed0": 3600,
        "sample_suite/tables/base-i2v-steps10/shard0": 900,
        "sample_suite/tables/base-i2v-steps10/shard1": 900,
        f"sample_suite/tables/{MAIN}-iteration300-alpha1.4-i2v-steps10/shard0": 1800,
        f"sample_suite/tables/{MAIN}-iteration300-alpha1.4-i2v-steps10/shard1": 3600,
        "score_videos/tables/base-i2v-steps10": 360,
    }
    for name, value in seconds.items():
        file = tmp_path / "benchmarks" / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{HEADER}\n{value}.0000\t0:00:00" + "\t1.0" * 8 + "\n")
    return tmp_path / "benchmarks"


@pytest.fixture
def log(tmp_path):
    """A function that writes the log of a training run and returns its folder."""

    def write(name, elapsed):
        folder = tmp_path / "lora" / name
        folder.mkdir(parents=True)
        table = pd.DataFrame(1.0, index=range(3), columns=list(TRAINING_COLUMNS))
        table["elapsed_seconds"] = [elapsed / 4, elapsed / 2, elapsed]
        table.to_csv(folder / "training.csv", index=False)
        return folder

    return write


def measure(benchmarks, runs=(), gpus=None, price=None):
    table = measure_costs(
        benchmarks, list(runs), gpus=gpus or {}, main_run=MAIN, usd_per_gpu_hour=price
    )
    return table.set_index("stage")


def test_every_job_counts(benchmarks):
    """Shards of different settings have the same file name."""
    costs = measure(benchmarks, gpus={"train": 8, "sample_suite": 1}, price=2.5)
    columns = ["jobs", "hours", "gpu_hours"]
    expected = {
        "cache_latents": (1, 0.5, 0.0),
        "sample_suite": (4, 2.0, 2.0),
        "score_videos": (1, 0.1, 0.0),
        f"train: {MAIN}": (1, 2.0, 16.0),
        "train": (2, 3.0, 24.0),
        "total": (8, 5.6, 26.0),
    }
    expected = pd.DataFrame.from_dict(expected, orient="index", columns=columns)
    pd.testing.assert_frame_equal(costs[columns], expected, check_names=False)
    assert costs["usd"].to_numpy() == pytest.approx(2.5 * costs["gpu_hours"])


def test_training_counts_the_attempts_before_the_last(benchmarks, log):
    """The benchmark times the attempt that finished, the log all of them."""
    resumed, whole = log(MAIN, elapsed=10_800), log("control-rank64-seed0", elapsed=3500)
    costs = measure(benchmarks, [resumed, whole])
    assert costs.loc[f"train: {MAIN}", "hours"] == pytest.approx(3)
    assert costs.loc["train", "hours"] == pytest.approx(3 + 1)  # saving is not in the log
    assert costs.loc["train", "jobs"] == 2


def test_released_lora_takes_no_training(tmp_path):
    (tmp_path / "score_videos.tsv").write_text(f"{HEADER}\n36" + "\t1" * 9 + "\n")
    costs = measure(tmp_path)
    assert list(costs.index) == ["score_videos", "total"]
    sentence = describe_costs(costs.reset_index())
    assert sentence.startswith("Cost: everything in this folder took 0.01 hours of jobs without a")
    assert "training this model" not in sentence


def test_without_benchmarks(tmp_path, log):
    """Trainings are known by their logs, other jobs are not."""
    costs = measure(tmp_path / "none", [log(MAIN, elapsed=3600)])
    assert list(costs.index) == [f"train: {MAIN}", "train", "total"]
    assert (costs["hours"] == 1).all()
    assert measure(tmp_path / "none")["hours"].to_dict() == {"total": 0}


@pytest.mark.parametrize(
    ("gpus", "price", "told"),
    [
        (
            {"train": 800, "sample_suite": 1},
            2.5,
            "training this model took 1,600.0 GPU-hours, $4,000.00; "
            "everything in this folder took 2,402.0 GPU-hours, $6,005.00",
        ),
        (
            {"train": 8},
            None,
            "training this model took 16.0 GPU-hours; "
            "everything in this folder took 24.0 GPU-hours (",
        ),
        (
            {},
            2.5,
            "training this model took 2.00 hours of jobs without a GPU; "
            "everything in this folder took 5.60 hours of jobs without a GPU",
        ),
    ],
)
def test_sentence(benchmarks, tmp_path, gpus, price, told):
    measure(benchmarks, gpus=gpus, price=price).to_csv(tmp_path / "costs.csv")
    sentence = describe_costs(pd.read_csv(tmp_path / "costs.csv"))
    assert told in sentence
    assert "about $500" in sentence
    assert "nan" not in sentence
