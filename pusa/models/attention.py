"""Frame-to-frame self-attention (Figure 4): how much each latent frame looks at each other one.

The map of a block is ``softmax(q k^T / sqrt(d))``, summed over the keys of a frame, averaged over
the queries of a frame and over heads. At 832x480x81 the full matrix would have 40 heads x 10^9
entries; it is made one head and a few queries at a time, which changes nothing in the result.

The authors average queries and keys over a frame before the softmax, which is another map.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from diffusers import WanTransformer3DModel

from pusa.digests import write_record

#: Entries of the attention matrix that are held at once; 64 MiB of float32.
_ENTRIES = 2**24
#: Queries, keys and the number of latent frames, to a map.
Measure = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def frame_attention(query: torch.Tensor, key: torch.Tensor, frames: int) -> torch.Tensor:
    """Attention of frames to frames, exactly, in float32 and in bounded memory.

    Args:
        query: ``(batch, tokens, heads, head_dim)``, tokens of all frames in order, after the
            rotary embedding.
        key: in the shape of ``query``.
        frames: latent frames; all have equally many tokens.

    Returns:
        ``(batch, frames, frames)``, queries by keys; every row sums to 1.

    Raises:
        ValueError: if ``frames`` does not divide the tokens, or the shapes differ.
    """
    _check_shapes(query, key, frames)
    batch, tokens, heads, head_dim = query.shape
    chunk = max(1, _ENTRIES // tokens)
    mass = query.new_zeros(batch, tokens, frames, dtype=torch.float32)  # of a query, per key frame
    for clip in range(batch):
        for head in range(heads):
            keys = key[clip, :, head].float().T / head_dim**0.5
            for start in range(0, tokens, chunk):
                queries = query[clip, start : start + chunk, head].float()
                weights = torch.softmax(queries @ keys, dim=-1)  # (chunk, tokens)
                mass[clip, start : start + chunk] += weights.unflatten(1, (frames, -1)).sum(2)
    return mass.unflatten(1, (frames, -1)).mean(2) / heads


def attention_of_means(query: torch.Tensor, key: torch.Tensor, frames: int) -> torch.Tensor:
    """Attention of the frames' mean queries to their mean keys, as the authors draw it.

    ``softmax(mean(q) mean(k)^T / sqrt(d))`` over frames, averaged over heads. It is that of
    `frame_attention` where all tokens of a frame are alike. Source: their
    ``_visualize_frame_self_attention`` in ``diffsynth/models/wan_video_pusa.py``.

    Args, returns and errors are those of `frame_attention`.
    """
    _check_shapes(query, key, frames)
    # (batch, heads, frames, head_dim)
    query, key = (
        x.float().unflatten(1, (frames, -1)).mean(2).transpose(1, 2) for x in (query, key)
    )
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1).mean(1)


def _check_shapes(query: torch.Tensor, key: torch.Tensor, frames: int) -> None:
    if query.shape != key.shape or query.ndim != 4 or query.shape[1] % frames:
        raise ValueError(
            "query and key must both have shape (batch, tokens, heads, head_dim), tokens a "
            f"multiple of {frames} frames, found {tuple(query.shape)} and {tuple(key.shape)}"
        )


@contextmanager
def capture_attention(
    transformer: WanTransformer3DModel,
    *,
    block: int = -1,
    calls: Collection[int] | None = None,
    measure: Measure = frame_attention,
) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the maps of one block while the model runs; its output does not change.

    Args:
        transformer: the base, ours, or Wan-I2V's; with or without LoRAs.
        block: which block; the last, as in the paper.
        calls: which forward passes, counted from 0 within the scope; all if none are given. With
            guidance a step takes two, of which the first is the prompt's.
        measure: makes a map of queries and keys; `attention_of_means` is the other one.

    Yields:
        The map of each pass that has run, ``(batch, frames, frames)`` on the CPU.

    Raises:
        ValueError: if there is no such block, or the model's tokens are spread over processes.
    """
    blocks = len(transformer.blocks)
    if not -blocks <= block < blocks:
        raise ValueError(f"block {block} does not exist, expected one of the {blocks} from 0")
    if transformer._parallel_config is not None:
        raise ValueError("attention maps need all tokens in one process, found context parallelism")
    maps: dict[int, torch.Tensor] = {}
    seen: dict = {"call": -1}

    def begin(_module, _inputs, output) -> None:
        seen["call"] += 1
        seen["frames"] = output.shape[2]  # of (batch, dim, frames, rows, columns)

    def keep(name: str):
        def hook(_module, _inputs, output) -> None:
            if calls is None or seen["call"] in calls:
                seen[name] = output.detach()

        return hook

    def finish(attention, inputs, _output) -> None:
        if "query" in seen:
            query, key = (
                _rotate(seen.pop(name).unflatten(2, (attention.heads, -1)), *inputs[3])
                for name in ("query", "key")
            )
            maps[seen["call"]] = measure(query, key, seen["frames"]).cpu()

    attention = transformer.blocks[block].attn1
    hooks = [
        transformer.patch_embedding.register_forward_hook(begin),
        attention.norm_q.register_forward_hook(keep("query")),
        attention.norm_k.register_forward_hook(keep("key")),
        attention.register_forward_hook(finish),
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def maps_at_steps(
    sample: Callable[[], object],
    transformer: WanTransformer3DModel,
    steps: Collection[int],
    *,
    guidance: bool,
    block: int = -1,
    measure: Measure = frame_attention,
) -> dict[int, torch.Tensor]:
    """The prompt's maps at some steps of a sampling, each ``(frames, frames)``.

    Args:
        sample: makes one video with the transformer.
        steps: sampling steps, counted from 0.
        guidance: whether a step has a second pass, without the prompt.
        block, measure: as of `capture_attention`.

    Raises:
        ValueError: if the transformer does not run at one of the steps.
    """
    passes = 2 if guidance else 1
    calls = {passes * step for step in steps}
    with capture_attention(transformer, block=block, calls=calls, measure=measure) as maps:
        sample()
    if missing := calls - maps.keys():
        raise ValueError(
            f"step {min(missing) // passes} has no attention map, as the transformer did not run "
            "then; expected a step of the sampling, and one transformer for all of them"
        )
    return {call // passes: maps[call][0] for call in sorted(calls)}


def first_frame_mass(maps: dict[int, torch.Tensor], sigmas: torch.Tensor) -> pd.DataFrame:
    """How much the other frames look at the first one.

    Args:
        maps: ``(frames, frames)`` of each step.
        sigmas: noise level of every step.

    Returns:
        ``step, sigma, mass`` (of the first frame's keys, mean over the other frames' queries) and
        ``uniform``, what it would be if all frames were looked at alike.
    """
    rows = [
        (step, sigmas[step].item(), weights[1:, 0].mean().item(), 1 / len(weights))
        for step, weights in maps.items()
    ]
    return pd.DataFrame(rows, columns=["step", "sigma", "mass", "uniform"])


def write_attention(
    out: str | Path, maps: dict[int, torch.Tensor], mass: pd.DataFrame, record: dict
) -> None:
    """Write maps as ``out``, a CSV of ``step, query, key, weight``, latent frames from 0.

    Beside it, under its name: ``record``, how they were made, by `pusa.digests.write_record`, and
    the table of `first_frame_mass` in ``-mass.csv``.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        (step, query, key, weight)
        for step, weights in maps.items()
        for query, row in enumerate(weights.tolist())
        for key, weight in enumerate(row)
    ]
    pd.DataFrame(rows, columns=["step", "query", "key", "weight"]).to_csv(out, index=False)
    beside = out.with_name(f"{out.stem}-mass.csv")
    mass.to_csv(beside, index=False)
    write_record([out, beside], record)


def _rotate(tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Wan's rotary embedding, as in diffusers' attention processor, which keeps it to itself.

    Args:
        tokens: ``(batch, tokens, heads, head_dim)``.
        cos: ``(1, tokens, 1, head_dim)``, as ``sin``; each value stands there twice.
    """
    real, imaginary = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return rotated.flatten(-2).type_as(tokens)
