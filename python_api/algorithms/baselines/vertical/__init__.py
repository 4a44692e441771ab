"""What Proto-EVFL has to beat on tables: the same data, steps, noise and choice of the round."""
