"""VBench-I2V's own code and networks: how they are fetched, and how videos are scored by them."""

#: Pixels; under it RAFT and AMT give NaN, which VBench counts as no motion and as smoothness 0.48.
MIN_SIDE = 128
