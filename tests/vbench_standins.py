"""Stand-ins with random weights for the networks of VBench-I2V, where their downloads would be.

``python -m tests.vbench_standins FOLDER`` writes them, in VBench's environment. MUSIQ, RAFT and
AMT are the real architectures, CLIP and DINO tiny ones, and CoTracker finds pans by phase
correlation.
"""

import json
import os
import socket
import sys
from pathlib import Path

import clip.model
import pandas as pd
import torch
import vbench
from dreamsim.feature_extraction import load_clip_as_dino, load_open_clip_as_dino
from dreamsim.feature_extraction.vision_transformer import DINOHead, VisionTransformer
from dreamsim.model import PerceptualModel, dreamsim_args
from easydict import EasyDict
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from pyiqa.archs.musiq_arch import MUSIQ
from torch import nn
from vbench.third_party.amt.utils.build_utils import build_from_cfg
from vbench.third_party.RAFT.core.raft import RAFT
from vbench2_beta_i2v import VBenchI2V

from pusa.data.suite import INFO_FILE, read_suite
from pusa.score.arithmetic import NAMES
from pusa.score.vbench import score_videos
from pusa.score.vbench_weights import dimension_files

DINO_HUB = '''
import torch
from dreamsim.feature_extraction.vision_transformer import VisionTransformer

dependencies = ["torch"]
URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"


def dino_vitb16(pretrained=True, **kwargs):
    """The real one swallows VBench's settings too."""
    model = VisionTransformer(
        patch_size=16, embed_dim=48, depth=12, num_heads=2, mlp_ratio=1, qkv_bias=True
    )
    model.load_state_dict(torch.hub.load_state_dict_from_url(URL, map_location="cpu"))
    return model
'''

COTRACKER_HUB = '''
import torch

dependencies = ["torch"]
URL = "https://huggingface.co/facebook/cotracker/resolve/main/cotracker2.pth"


class Shift(torch.nn.Module):
    """A grid of points, moved by the shift of the whole frame since the first one."""

    def __init__(self):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.zeros(()))

    def forward(self, video, grid_size):
        height, width = video.shape[-2:]
        spectra = torch.fft.fft2(video[0].mean(1))
        cross = spectra * spectra[0].conj()
        peaks = torch.fft.ifft2(cross / cross.abs().clamp(min=1e-6)).real.flatten(1).argmax(1)
        y, x = peaks // width, peaks % width
        y, x = (y + height // 2) % height - height // 2, (x + width // 2) % width - width // 2
        rows, columns = torch.meshgrid(
            torch.linspace(0, height, grid_size), torch.linspace(0, width, grid_size), indexing="ij"
        )
        grid = torch.stack([columns, rows], -1).reshape(1, -1, 2).to(video.device)
        tracks = grid + torch.stack([x, y], -1)[:, None]
        return tracks[None], torch.ones_like(tracks[None, ..., 0])


def cotracker2(*, pretrained=True, **kwargs):
    model = Shift()
    model.load_state_dict(torch.hub.load_state_dict_from_url(URL, map_location="cpu"))
    return model
'''


def shrink_dreamsim() -> None:
    """Make DreamSim build its two CLIPs small, as `write_weights` writes them."""

    def vit_base(patch_size: int) -> VisionTransformer:
        return VisionTransformer(
            patch_size=patch_size, embed_dim=48, depth=2, num_heads=2, mlp_ratio=1, qkv_bias=True
        )

    load_clip_as_dino.vit_base = load_open_clip_as_dino.vit_base = vit_base


def write_weights(folder: Path) -> None:
    """Write every file that `pusa.score.vbench` wants."""
    torch.manual_seed(0)
    hub = folder / "torch/hub"
    for name in ("facebookresearch_dino_main", "facebookresearch_co-tracker_main", "checkpoints"):
        (hub / name).mkdir(parents=True)
    (hub / "facebookresearch_dino_main/hubconf.py").write_text(DINO_HUB)
    (hub / "facebookresearch_co-tracker_main/hubconf.py").write_text(COTRACKER_HUB)
    for name in ("clip_model", "amt_model", "raft_model/models", "pyiqa_model", "dino_model"):
        (folder / name).mkdir(parents=True)
    (folder / "aesthetic_model/emb_reader").mkdir(parents=True)

    _write_clip(folder / "clip_model/ViT-B-32.pt", patch_size=32, embed_dim=512)
    _write_clip(folder / "clip_model/ViT-L-14.pt", patch_size=14, embed_dim=768)
    head = nn.Linear(768, 1)
    nn.init.constant_(head.bias, 5.0)  # the middle of the scale, 0 to 10
    torch.save(head.state_dict(), folder / "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")
    torch.save(MUSIQ(pretrained=False).state_dict(),
               folder / "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth")  # fmt: skip
    config = Path(vbench.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml"
    amt = build_from_cfg(OmegaConf.load(config).network)
    torch.save({"state_dict": amt.state_dict()}, folder / "amt_model/amt-s.pth")
    raft = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    torch.save(
        {f"module.{name}": value for name, value in raft.state_dict().items()},
        folder / "raft_model/models/raft-things.pth",
    )
    torch.save({"sharpness": torch.zeros(())}, hub / "checkpoints/cotracker2.pth")

    dino = VisionTransformer(
        patch_size=16, embed_dim=48, depth=12, num_heads=2, mlp_ratio=1, qkv_bias=True
    )
    torch.save(dino.state_dict(), hub / "checkpoints/dino_vitbase16_pretrain.pth")
    (folder / "dino_model/dino_vitbase16_pretrain.pth").symlink_to(
        "../torch/hub/checkpoints/dino_vitbase16_pretrain.pth"
    )
    (folder / "dino_model/facebookresearch_dino_main").symlink_to(
        "../torch/hub/facebookresearch_dino_main"
    )
    _write_dreamsim(hub)
    for name in {name for dimension in NAMES for name in dimension_files(dimension)}:
        if not (folder / name).exists():  # code that the stand-ins do without
            (folder / name).touch()


def _write_clip(file: Path, *, patch_size: int, embed_dim: int) -> None:
    """A TorchScript archive in half precision, as OpenAI's."""
    model = clip.model.CLIP(
        embed_dim=embed_dim,
        image_resolution=224,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=patch_size,
        context_length=77,
        vocab_size=64,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    ).eval()
    inputs = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
    torch.jit.save(torch.jit.trace(model, inputs).half(), file)


def _write_dreamsim(hub: Path) -> None:
    shrink_dreamsim()
    head = {f"module.head.{k}": v for k, v in DINOHead(768, 2048).state_dict().items()}
    head["module.head.last_layer.weight"] = head.pop("module.head.last_layer.weight_v")
    torch.save({"student": head}, hub / "dino_vitb16_pretrain.pth")
    for name in ("clip", "open_clip"):
        model = load_clip_as_dino.vit_base(16)
        model.pos_drop = nn.LayerNorm(model.embed_dim)
        weights = model.state_dict() | {"proj": torch.randn(model.embed_dim, 32)}
        torch.save({"state_dict": weights}, hub / f"{name}_vitb16_pretrain.pth.tar")
    model = PerceptualModel(
        **dreamsim_args["model_config"]["ensemble"], device="cpu", load_dir=str(hub)
    )
    lora = LoraConfig(r=2, lora_alpha=2, target_modules=["qkv"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(hub / "ensemble_lora")


def score_twice(suite: str, samples: str, weights: str, dimension: str, out: str) -> None:
    """Score two shares of the videos by `pusa`, and all of them by VBench's own evaluation.

    Writes to ``out``: ``shard0.csv``, ``shard1.csv``, ``unasked.csv`` (videos whose prompts do not
    ask for the dimension), ``record.json``, VBench's ``official_eval_results.json``, and in
    ``asked.txt`` the addresses that were asked for while `pusa` scored.
    """
    asked = []

    def refuse(*address, **_):
        asked.append(str(address))
        raise OSError("the network is cut")

    socket.getaddrinfo = socket.socket.connect = refuse
    shrink_dreamsim()
    out, videos = Path(out), pd.read_csv(Path(samples, "manifest.csv"))
    prompts = read_suite(suite, height=128, width=128)
    unasked = videos[[dimension not in prompts[index].dimensions for index in videos["index"]]]
    parts = {"unasked": unasked, "shard0": videos[::2], "shard1": videos[1::2]}
    for name, part in parts.items():
        table, record = score_videos(
            prompts, part, samples, dimension=dimension, weights=weights, device="cpu"
        )
        table.to_csv(out / f"{name}.csv", index=False)
    (out / "record.json").write_text(json.dumps(record))
    (out / "asked.txt").write_text("\n".join(asked))

    # VBench looks for images under the working directory, and for videos by their prompts.
    (out / "named").mkdir()
    for row in videos.to_dict("records"):
        name = f"{prompts[row['index']].prompt}-{row['sample']}.mp4"
        (out / "named" / name).symlink_to(Path(samples, row["file"]))
    (out / "vbench2_beta_i2v").mkdir()
    (out / "vbench2_beta_i2v/data").symlink_to(suite)
    os.chdir(out)
    VBenchI2V(torch.device("cpu"), str(Path(suite, INFO_FILE)), str(out)).evaluate(
        str(out / "named"), "official", [dimension], local=True, resolution="1-1"
    )


if __name__ == "__main__":
    write_weights(Path(sys.argv[1]))
