"""From text to batches; NumPy in, NumPy out, without JAX."""
