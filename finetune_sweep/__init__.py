"""finetune_sweep: hyperparameter sweeps for fine-tuning, from one YAML file to a promoted checkpoint."""

__version__ = "0.1.0"
