"""Stopping a training and going on from where it stopped, to the bit.

Everything that a run delivers is kept in its state folder until the end, beside the newest
checkpoint, ``checkpoint-<iteration>``: a safetensors file for each process, with its share of
the weights and of AdamW's state, and ``checkpoint.json``, which says what run it is of. No random
state is needed, as training draws every number from the seed and the iteration.

DeepSpeed's own checkpoints are pickles, and so are torch.distributed.checkpoint's unless they
are safetensors, where no checksum tells of damage. DeepSpeed's ``safe_set_*`` functions reach
AdamW's moments only after a first step, its count of steps never, and not the model's weights.
"""

import fcntl
import json
import math
import os
import shutil
import signal
import time
import traceback
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pusa.config import TrainSettings
from pusa.records import atomic, remove

#: What a run leaves in its state folder, beside its lock; nothing else is ever touched.
_DELIVERED = ("iteration_*", "training.csv", "validation.csv", "run.json")
_LEFT_BY_A_RUN = (*_DELIVERED, "checkpoint-*", ".partial-*")


@contextmanager
def together():
    """Make an error of any process the error of all, so that none waits for a lost one.

    It is raised as by `raise_once`. The block may not communicate itself, as a process that
    failed would not take part.
    """
    error = None
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as caught:
        error = caught
    except SafetensorError as caught:
        error = OSError(f"safetensors: {caught}")
    except Exception as caught:  # such as too little memory on a GPU
        traceback.print_exc()
        error = RuntimeError(f"{type(caught).__name__}: {caught}")
    errors = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    first = next((e for e in errors if e is not None), None)
    if first is not None:
        raise_once(first)


def raise_once(error: Exception) -> None:
    """Raise an error that all processes have: on process 0; the others leave with exit code 1."""
    raise error if dist.get_rank() == 0 else SystemExit(1)


@contextmanager
def claim(state: Path):
    """Keep other trainings out of a state folder; the claim ends with the process at the latest.

    A killed launcher can leave its processes at work, and two runs would mix their files.

    Raises:
        OSError: if another training is at work in the folder.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another training is at work in the state folder {state}") from None
        yield


class StopWatch:
    """Says when to stop: at a signal, or while a wall-clock budget still leaves time to save.

    The budget counts from the start of the process. A tenth of it, at most five minutes, is kept
    for what cannot be foreseen; for the rest, the longest so far of each part of the work
    counts as what it will take next.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes  # 0: no budget
        self.longest: dict[str, float] = {}  # seconds, by part of the work
        self._started = psutil.Process().create_time()
        margin = min(300, 6 * minutes)
        self._end = self._started + 60 * minutes - margin if minutes else math.inf
        self._signalled = False

    def __enter__(self):
        """Take SIGTERM and SIGINT as a request to stop, until the block is left."""
        self._handlers = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, *_):
        self._signalled = True

    def elapsed(self) -> float:
        """Seconds since the process started."""
        return time.time() - self._started

    @contextmanager
    def measure(self, part: str):
        """Time a part of the work."""
        start = time.monotonic()
        yield
        self.longest[part] = max(self.longest.get(part, 0), time.monotonic() - start)

    def reason(self, parts: list[str]) -> int:
        """Why to stop before ``parts`` are done once more: 2 a signal, 1 the budget, 0 do not."""
        needed = sum(self.longest.get(part, 0) for part in parts)
        return 2 if self._signalled else int(time.time() + needed > self._end)


def find_checkpoint(state: Path, run: dict) -> tuple[Path | None, dict]:
    """Find the newest checkpoint of the state folder, or None, and what it says.

    That is its ``iteration``, the ``run`` and ``longest`` of a `StopWatch`, as they were given to
    `write_checkpoint`.

    Raises:
        ValueError: if it is of another ``run``, or its record is damaged or missing. Days of work
            may be in it, so that it is not for us to delete.
    """
    newest = max(state.glob("checkpoint-*[0-9]"), key=_iteration_of, default=None)
    if newest is None:
        return None, {"iteration": 0, "longest": {}}
    file = newest / "checkpoint.json"
    try:
        record = json.loads(file.read_text())
        if record["iteration"] != _iteration_of(newest):
            raise ValueError("it belongs to another checkpoint")
        # A setting that is newer than the checkpoint was what its default is now.
        known, wanted = TrainSettings.defaults(), json.loads(json.dumps(run))
        saved = {key: known.get(key) for key in wanted} | record["run"]
        different = [k for k in {**saved, **wanted} if saved.get(k) != wanted.get(k)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None
    if different:
        changes = ", ".join(f"{k} {saved.get(k)} -> {wanted.get(k)}" for k in different)
        raise ValueError(
            f"{newest} is of another run ({changes}); set that back to go on from it, or delete "
            f"the state folder {state} to train anew"
        )
    return newest, record


def write_checkpoint(adamw: torch.optim.AdamW, state: Path, record: dict) -> None:
    """Write ``checkpoint-<record['iteration']>`` and then remove the one before it."""
    final = state / f"checkpoint-{record['iteration']}"
    partial = state / f".partial-{final.name}"
    with together():
        partial.mkdir(exist_ok=True)
        tensors = {name: tensor.cpu() for name, tensor in _share_of_this_process(adamw).items()}
        save_file(tensors, _file_of_this_process(partial), {"sha256": _digest(tensors)})
    with together():
        if dist.get_rank() == 0:
            (partial / "checkpoint.json").write_text(json.dumps(record, indent=1))
            os.replace(partial, final)
            for other in set(state.glob("*checkpoint-*")) - {final}:
                shutil.rmtree(other)


def read_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of this process from a checkpoint.

    Raises:
        ValueError: if its file is missing, cannot be read, or does not hold what was written.
    """
    file = _file_of_this_process(checkpoint)
    try:
        with safe_open(file, framework="pt") as weights:
            written = (weights.metadata() or {}).get("sha256")
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from None
    if _digest(tensors) != written:
        raise _damaged(file, "its checksum differs from that of its contents")
    return tensors


@contextmanager
def replaced_step(adamw: torch.optim.AdamW, tensors: dict[str, torch.Tensor]):
    """Let the optimizer's next step end with what `read_checkpoint` gave, whatever it computes.

    A new engine has no state of AdamW yet, and only a step of ZeRO's own takes the weights from
    the optimizer to the model.
    """

    def replace(*_):  # ZeRO-3 has AdamW make a step for each of its groups in turn
        for name, tensor in _share_of_this_process(adamw).items():
            if name in tensors:
                tensor.copy_(tensors.pop(name))

    hook = adamw.register_step_post_hook(replace)
    yield
    hook.remove()


def _share_of_this_process(adamw: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """The float32 weights that ZeRO gives to this process's AdamW, flat, and its state of them."""
    return {
        f"{i}.{name}": tensor
        for i, (weights, state) in enumerate(adamw.state.items())
        for name, tensor in {"weights": weights.detach(), **state}.items()
    }


def _file_of_this_process(checkpoint: Path) -> Path:
    return checkpoint / f"process-{dist.get_rank():05d}.safetensors"


def _iteration_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy())
    return digest.hexdigest()


def _damaged(file: Path, why) -> ValueError:
    return ValueError(
        f"{file} is damaged ({why}); delete the state folder {file.parent.parent} to train anew"
    )


def publish(state: Path, out: Path) -> None:
    """Deliver a finished run from its state folder to ``out``, each file or folder at once.

    The state folder stays as it was until the end, so that a run killed here can be repeated.
    """
    for source in (path for pattern in _DELIVERED for path in state.glob(pattern)):
        with atomic(out / source.name) as partial:
            if source.is_dir():
                shutil.copytree(source, partial, copy_function=_link)
            else:
                _link(source, partial)
    clear(state)
    (state / "lock").unlink(missing_ok=True)
    if not any(state.iterdir()):
        state.rmdir()


def clear(state: Path) -> None:
    """Remove what an earlier run left in its state folder."""
    for path in (path for pattern in _LEFT_BY_A_RUN for path in state.glob(pattern)):
        remove(path)


def _link(source, target) -> None:
    """A second name for a file, at no cost, or a copy where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
