"""What a process that trains on CPUs sets once: threads, denormal numbers, and what becomes of freed memory."""

import ctypes

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt
_MAX_INT = (1 << 31) - 1
_SETTINGS = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: _MAX_INT, _TOP_PAD: 1 << 26}


def prepare_process(num_threads: int) -> None:
    """Sets this process's torch threads, and what makes its steps quick.

    Denormals are slow, and Adam's averages of rarely touched rows decay into them. And glibc gives the memory of a
    step's tensors back to the kernel, which must then map and clear it again page by page in the next step: a third of
    a step's time on a virtual machine. Here freed memory below 1 GiB a tensor stays with the process.
    """
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is not None:
        for parameter, value in _SETTINGS.items():
            mallopt(parameter, value)
