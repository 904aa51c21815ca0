"""The only package that uses Ray: processes, placement, retries and storage around `core`.

Ray reads some of its settings at import time, so they are set here, before any module of this package imports it.
"""

from ray_recsys.distributed.environment import set_defaults

set_defaults()
