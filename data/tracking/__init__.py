"""Where runs are followed besides their own directory: one interface, one module per tracker."""
