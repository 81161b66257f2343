"""What is made of finished runs: `run` reads a run's folder back, `tables` compares runs, `plots` draws them."""
