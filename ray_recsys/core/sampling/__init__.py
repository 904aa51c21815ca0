"""The epoch stream: shuffled batches of positives with their weights and negatives."""
