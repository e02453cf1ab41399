"""A folder of files that this user alone can write, safe to unpickle from."""

import contextlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from pathlib import Path

PRIVATE = 0o700


class Refused(OSError):
    """The folder cannot be had or cannot be trusted; the message says why."""


def usual_places(name):
    """Where such a folder may be, best first: the user's cache directory, then the temporary directory under a name with the user's number."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        yield Path(configured) / name
    else:
        home = Path(os.path.expanduser("~"))
        if home.is_absolute() and home.is_dir():
            yield home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / name
    if hasattr(os, "geteuid"):
        yield Path(tempfile.gettempdir()) / f"{name}-{os.geteuid()}"


class PrivateFolder:
    """Files by name; a file that cannot be read is absent and one that cannot be written is forgotten: a cache may lose anything.

    Parameters
    ----------
    path : Path
        Created with mode 0700 if missing. A folder of ours that others may read is made private; one that others may write is refused, because
        what lies in it may be theirs.

    Raises
    ------
    Refused
        Not creatable, not writable, a link, another user's, writable by others, or not a POSIX system.
    """

    def __init__(self, path):
        self.path = Path(path)
        if not hasattr(os, "geteuid") or os.open not in os.supports_dir_fd:
            raise Refused("this system has no POSIX permissions")
        try:
            self.path.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, PRIVATE)
            with self._opened() as folder:
                if stat.S_IMODE(os.fstat(folder).st_mode) != PRIVATE:
                    os.fchmod(folder, PRIVATE)
                probe = f".probe-{secrets.token_hex(8)}"
                os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder))
                os.unlink(probe, dir_fd=folder)
        except Refused:
            raise
        except OSError as error:
            raise Refused(f"{self.path}: {error.strerror}") from error

    def subfolder(self, name):
        """A private folder inside this one, marked as used now."""
        folder = PrivateFolder(self.path / name)
        with contextlib.suppress(OSError):
            os.utime(folder.path)
        return folder

    def keep_newest(self, count):
        """Remove all but the most recently used subfolders."""
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            folders = [(entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
            for _, path in sorted(folders, reverse=True)[count:]:
                shutil.rmtree(path, ignore_errors=True)

    def read(self, name):
        """The file's bytes, or None if there is no such file of ours."""
        try:
            with self._opened() as folder, open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
                status = os.fstat(file.fileno())
                ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
                return file.read() if ours else None
        except OSError:
            return None

    def write(self, name, content):
        """Put the file in place at once: another process sees the old one or the whole new one."""
        draft = f".{name}.{secrets.token_hex(8)}"
        with contextlib.suppress(OSError), self._opened() as folder:
            try:
                with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder), "wb") as file:
                    file.write(content)
                os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft, dir_fd=folder)
                raise

    def remove(self, name):
        with contextlib.suppress(OSError), self._opened() as folder:
            os.unlink(name, dir_fd=folder)

    @contextlib.contextmanager
    def _opened(self):
        """Descriptor of the folder, checked after opening: what it names cannot change any more."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid():
                raise Refused(f"{self.path} belongs to another user")
            if status.st_mode & 0o022:
                raise Refused(f"{self.path} is writable by other users")
            yield folder
        finally:
            os.close(folder)
