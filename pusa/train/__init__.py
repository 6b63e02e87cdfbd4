"""Training with the FAFM objective: the loop, its steps, engine, checkpoints, weights and log."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
