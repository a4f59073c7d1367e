"""How fast the answers are: methods, the runner, its report, and the architectures with random weights."""
