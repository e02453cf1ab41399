"""A folder of files that this user alone can write, safe to unpickle from.

Anything may lie where the folder or a file of it should be: pipes, sockets, devices, links, what belongs
to others. Nothing here waits for it, follows it or trusts it: files are opened without blocking, and what
was opened is looked at before it is read.
"""

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
    """The folder or file cannot be had or cannot be trusted; the message says why."""


def usual_places(name):
    """Where such a folder may be, best first: the user's cache directory, then the temporary
    directory under a name with the user's number.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        yield Path(configured) / name
    else:
        home = Path(os.path.expanduser("~"))
        if home.is_absolute() and os.path.isdir(home):
            yield home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / name
    if hasattr(os, "geteuid"):
        with contextlib.suppress(OSError):  # no temporary directory can be written to
            yield Path(tempfile.gettempdir()) / f"{name}-{os.geteuid()}"


class PrivateFolder:
    """Files by name; a file that cannot be read is absent, and a write that fails leaves the folder as it
    was: a cache may lose anything.

    Parameters
    ----------
    path : Path
        Created with mode 0700 if missing. A folder of ours that others may read is made private; one that
        others may write is refused, because what lies in it may be theirs.

    Raises
    ------
    Refused
        Not creatable, not writable, not a folder, a link, another user's, writable by others, or not a
        POSIX system.
    """

    def __init__(self, path):
        self.path = Path(path)
        if not hasattr(os, "geteuid") or os.open not in os.supports_dir_fd:
            raise Refused("this system has no POSIX permissions")
        with self._telling_why():
            with contextlib.suppress(FileExistsError):  # of something else: opening it says so
                self.path.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, PRIVATE)
            with self._opened() as folder:
                if stat.S_IMODE(os.fstat(folder).st_mode) != PRIVATE:
                    os.fchmod(folder, PRIVATE)
        self.try_to_hold(0)

    def subfolder(self, name):
        """A private folder inside this one, marked as used now."""
        folder = PrivateFolder(self.path / name)
        with contextlib.suppress(OSError):
            os.utime(folder.path)
        return folder

    def keep_newest(self, count):
        """Remove all but the most recently used subfolders."""
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            folders = [
                (entry.stat(follow_symlinks=False).st_mtime, entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]
            for _, path in sorted(folders, reverse=True)[count:]:
                shutil.rmtree(path, ignore_errors=True)

    def read(self, name):
        """The file's bytes, or None if there is no such file of ours."""
        try:
            with self._opened() as folder:
                # Opening a pipe waits for a writer, and some devices wait too, unless told not to.
                file = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
                )
                try:
                    return _content_of_ours(file)
                finally:
                    os.close(file)
        except OSError:
            return None

    def write(self, name, content):
        """Put the file in place at once: another process sees what was there before or the whole new one.

        Raises
        ------
        Refused
            There is no room, or the folder is not what it was.
        """
        draft = f".{name}.{secrets.token_hex(8)}"
        with self._telling_why(), self._opened() as folder:
            try:
                _write_new(folder, draft, content)
                if os.path.isdir(self.path / name) and not os.path.islink(self.path / name):
                    shutil.rmtree(self.path / name)
                os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft, dir_fd=folder)
                raise

    def try_to_hold(self, size):
        """Write and remove a file of so many bytes; raises as `write` does."""
        probe = f".probe-{secrets.token_hex(8)}"
        with self._telling_why(), self._opened() as folder:
            try:
                _write_new(folder, probe, bytes(size))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(probe, dir_fd=folder)

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

    @contextlib.contextmanager
    def _telling_why(self):
        """Any failure of the system as `Refused`, about the uppermost path that is at fault."""
        try:
            yield
        except Refused:
            raise
        except OSError as error:
            for path in (*reversed(self.path.parents), self.path):
                problem = _no_folder(path)
                if problem:
                    raise Refused(f"{path} {problem}") from error
            if os.path.islink(self.path):
                raise Refused(f"{self.path} is a link") from error
            raise Refused(f"{self.path}: {error.strerror}") from error


def _content_of_ours(file):
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return None
    with open(file, "rb", closefd=False) as stream:
        return stream.read()


def _write_new(folder, name, content):
    with open(
        os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder), "wb"
    ) as file:
        file.write(content)


def _no_folder(path):
    """In words what lies there instead of a folder; empty for a folder, for nothing at all and where
    this user may not look.
    """
    if os.path.isdir(path) or not os.path.lexists(path):
        return ""
    return (
        "is a link that leads nowhere"
        if os.path.islink(path) and not os.path.exists(path)
        else "is not a directory"
    )
