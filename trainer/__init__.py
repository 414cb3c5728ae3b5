"""Upper floor: training on Ray Train and DeepSpeed, and full-catalogue evaluation."""
