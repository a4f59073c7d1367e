"""How good the answers are: benchmarks, metrics, controls, ablations, the judge and the reports."""
