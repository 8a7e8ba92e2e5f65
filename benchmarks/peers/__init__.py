"""The others: what a reader of the documentation of Ray Tune, transformers and Optuna writes for the same sweep."""
