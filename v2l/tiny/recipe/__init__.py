"""The training recipe of the embedded model: stages, the series that runs them, and the evaluation."""
