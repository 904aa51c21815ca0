"""The only home of Ray: processes, placement, retries and storage around `core`.

Ray reads some of its settings when it is imported, so they are made here, before any module of this package imports it.
"""

from ray_recsys.distributed.environment import set_defaults

set_defaults()
