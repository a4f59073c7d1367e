"""How the embedded model was trained: stages, the series that runs them, and its figures."""
