"""VBench-I2V's own code and networks: how they are fetched, and how videos are scored by them."""
