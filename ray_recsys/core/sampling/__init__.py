"""The epoch stream: positives with weights and negatives, in shuffled batches."""
