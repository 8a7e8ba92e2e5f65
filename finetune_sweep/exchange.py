"""Two folders change places in one step of the system, where it can do that."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

_CURRENT_FOLDER: Final = -100
_EXCHANGE: Final = 2
"""RENAME_EXCHANGE of Linux: see renameat2(2)."""
_CANNOT: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV})


def exchange(one: Path, other: Path) -> bool:
    """Lets two folders of one file system change places, so that at no moment either name is missing.

    Returns:
        Whether it was done; False where the system or the file system cannot, such as NFS.

    Raises:
        OSError: If it could, but a folder is missing or must not be moved.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if library.renameat2(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
