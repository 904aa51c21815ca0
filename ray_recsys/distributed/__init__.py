"""The only home of Ray: processes, placement, retries and storage around `core`."""
