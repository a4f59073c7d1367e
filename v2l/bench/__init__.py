"""Measure the speed of answers: methods, runner, report, and architectures with random weights."""
