"""Making videos: what is given, the pipeline, the paper's tasks, the resumable loop."""
