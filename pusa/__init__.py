"""Pusa V1.0: image-to-video by vectorized timestep adaptation (arXiv 2507.16116).

The names below load on first use, as torch and diffusers take seconds to import and scoring
and tables do not need them.
"""

from importlib import import_module

__version__ = "1.0.0"

_HOME = {
    "VideoSettings": "pusa.config",
    "Weights": "pusa.config",
    "PusaPipeline": "pusa.sample.pipeline",
    "load_pipeline": "pusa.sample.pipeline",
    "paper_scheduler": "pusa.sample.scheduler",
    "parse_placement": "pusa.sample.conditioning",
    "read_conditions": "pusa.sample.conditioning",
    "write_video": "pusa.data.video",
    "VTAWanTransformer3DModel": "pusa.transformer",
    "sample_latents": "pusa.sampler",
    "model_velocity": "pusa.sampler",
    "sigma_grid": "pusa.flow",
    "sample_sigma": "pusa.flow",
    "fafm_loss": "pusa.flow",
    "merge_lora": "pusa.models.lora",
}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'pusa' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
