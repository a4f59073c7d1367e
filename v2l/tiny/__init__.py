"""The embedded model: its weights, the drawn world that it knows, and the recipe that trained it."""
