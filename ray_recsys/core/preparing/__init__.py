"""From a raw log to the prepared set: rows checked, coded, filtered, split and laid down as histories."""
