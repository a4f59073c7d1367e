"""Measure the quality of answers: benchmarks, metrics, controls, ablations, the judge and reports."""
