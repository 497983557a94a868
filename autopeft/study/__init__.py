"""The study: a durable list of trials, its store and its executors. Torch-free in the driver."""
