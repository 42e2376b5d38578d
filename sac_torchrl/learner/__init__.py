"""The update: losses, gradients, optimizers, target networks; eager, compiled or captured."""
