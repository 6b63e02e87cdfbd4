"""Nine scores for each video, by VBench or weight-free, and the arithmetic above them."""
