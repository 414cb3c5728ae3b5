"""Other people's recommenders that benchmarks run beside ours, each in its own virtual environment."""
