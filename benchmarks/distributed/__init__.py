"""Products over several processes: their time beside the model's, and the bytes they send."""
