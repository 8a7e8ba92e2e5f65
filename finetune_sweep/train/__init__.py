"""Training one trajectory: weights, architectures, layers, optimizers, data and the loop."""
