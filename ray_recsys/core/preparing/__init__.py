"""From a raw log to a prepared set: rows are checked, encoded, filtered, split and written as histories."""
