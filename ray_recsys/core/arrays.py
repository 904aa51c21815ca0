"""Names for the array types that the package passes around."""

from typing import Any

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
UInt64s = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.integer[Any]]
