"""The loop, and the state of a run; knows no method by name."""
