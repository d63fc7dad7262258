"""A search over hyperparameters: Optuna draws, the store keeps its journal, the engine trains the trials."""
