"""The nightly pipeline: from the log of a new day to a release in its place, or to a reason why not."""
