"""One process at a time on one folder.

    with locked(folder): ...                                  refused while another process works in the folder
    python -m processes.lock once PATH -- COMMAND…               runs COMMAND, which makes PATH, unless PATH is there
    python -m processes.lock renew PATH -- COMMAND…              runs COMMAND, which makes PATH or PATH_tmp again
    python -m processes.lock clean PATH…                         removes PATH_tmp where it is an unfinished run

The commands are the makefiles', so that two makes can be typed at once: the second waits for the first, then makes
only what that one did not. `renew` moves a whole PATH_tmp into place. The kernel frees a lock when its holder dies,
however it dies. Nothing here needs torch: waiting costs nothing, and a command that makes nothing is over at once.
"""

import errno
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import FileIO
from itertools import count
from pathlib import Path

from processes.errors import UserError
from processes.ownership import RUN, RUN_FILES, is_begun, left_over, new_name, refuse_foreign, remove, strangers

MAKING = "_tmp"  # what the name of a run ends in until it is whole
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without locks answer


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps every other process out of `folder`, which is made if missing. Raises UserError while one is in it.

    `wait`: until it has left, instead.
    """
    with _held(folder / ".lock", folder, wait):
        yield


@contextmanager
def locked_name(path: Path) -> Iterator[None]:
    """Keeps every other process from making `path`, which is not there yet. Raises UserError while one does.

    Not the lock of `once`, which holds that while it runs a program that takes this one.
    """
    with _held(path.with_name(f".{path.name}.new.lock"), path, wait=False):
        yield


@contextmanager
def _held(lock: Path, what: Path, wait: bool) -> Iterator[int]:
    """The descriptor of the lock file, locked; it says who holds it, and is removed at the end.

    A forked child drops it, a started command does not get it unless it is passed on: the lock ends with its holder.
    """
    file = _acquire(lock, what, wait)
    try:
        os.register_at_fork(after_in_child=file.close)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.truncate(0)
        file.write(json.dumps(holder | {"command": shlex.join(sys.argv)}).encode())
        yield file.fileno()
    finally:
        if not file.closed and _is_at(file, lock):
            lock.unlink()
        file.close()


def _acquire(lock: Path, what: Path, wait: bool) -> FileIO:
    """The lock file, locked. Tried again when it was moved or removed between opening and locking."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = FileIO(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        except FileNotFoundError:  # its folder was moved just now
            continue
        try:
            _flock(file, what, wait)
            if _is_at(file, lock):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


@contextmanager
def own_part(path: Path) -> Iterator[tuple[int, Path]]:
    """Makes an empty file next to `path` that no other process writes to. Returns its descriptor and its hidden name.

    It is locked, so that what a killed process left is told from what a living one writes, and is written over.
    """
    numbers = count()
    while True:
        part = path.with_name(f".{path.name}.part-{next(numbers)}")
        with FileIO(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
            if _is_free(file) and _is_at(file, part):
                if os.fstat(file.fileno()).st_size:
                    file.truncate(0)
                yield file.fileno(), part
                return


def _is_free(file: FileIO) -> bool:
    """Whether no other process has locked it; from now on this one has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _flock(file: FileIO, what: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, host, holder = _holder(file)
        if not wait:
            raise UserError(
                f"{what} is being worked on by {holder}; wait for it, or stop it (kill {pid}, on {host}). Two makes on "
                "one folder are safe, the second one just has to wait."
            ) from None
        print(f"{what} is being worked on by {holder}; waiting for it (kill {pid}, on {host}, stops it).", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"The file system of {what} has no locks: start no second make on it.", stacklevel=2)


def _holder(file: FileIO) -> tuple[str, str, str]:
    """Pid, host and a phrase of both and the time."""
    try:
        told = json.loads(os.pread(file.fileno(), 1 << 20, 0))
        pid, (host, since) = int(told["pid"]), (_printable(told[key]) for key in ("host", "since"))
    except (KeyError, TypeError, ValueError):  # locked this very moment, not yet written
        return "its pid", "its host", "another process"
    return str(pid), host, f"process {pid} on {host} since {since}"


def _printable(text: str) -> str:
    """Without what would steer the screen; this file stands alone, and has no other helper for it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------------- for makefiles


def once(path: Path, command: Sequence[str]) -> int:
    """Runs `command`, which makes `path`, unless it is there; the exit code."""
    with _held(path.with_name(f".{path.name}.lock"), path, wait=True) as lock:
        if path.exists():
            print(f"{path} is there and is kept.")
            return 0
        return _run(command, lock)


def renew(path: Path, command: Sequence[str]) -> int:
    """Runs `command`, which makes `path` or `<path>_tmp` again, unless another process did meanwhile; the exit code.

    Raises UserError before that for a folder under either name that no run began.
    """
    made, before = unfinished(path), _inode(path)
    with _held(path.with_name(f".{path.name}.lock"), path, wait=True) as lock:
        if _inode(path) not in (None, before):
            print(f"{path} was made meanwhile by the process waited for.")
            return 0
        _repair(path)
        refuse_foreign(made, RUN, "run")
        refuse_foreign(path, RUN, "run", *RUN_FILES)
        was_there = os.path.lexists(made)
        code = _run(command, lock)
        if code == 0 and made.is_dir() and (is_begun(made, RUN) or not was_there):
            move(made, path)
        return code


def unfinished(path: Path) -> Path:
    """Where a run is made, and started again after a kill, until it is whole."""
    return path.with_name(path.name + MAKING)


def finished(path: Path) -> Path:
    """Where a run that is made in `path` will lie when it is whole: there, unless make moves it."""
    return path.with_name(path.name.removesuffix(MAKING) or path.name)


def move(made: Path, path: Path) -> None:
    """Puts the whole `made` in the place of `path`. At no moment is there neither; a kill in between leaves a state
    that `_repair` mends, with either nothing lost or the new one in place.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is a file where a run belongs; move it away. The run is whole, in {made}.")
    old = new_name(path, "old")
    with _held(made / ".lock", made, wait=True):
        if os.path.lexists(path):
            path.rename(old)
        made.rename(path)
        (path / f".of-{RUN}").unlink(missing_ok=True)  # a copy of what is in place is none to go on with
        (path / ".lock").unlink()  # which sets the folder's time, make's stamp, to now
    sync_folder(path.parent)
    _retire(old, path)


def _repair(path: Path) -> None:
    """What a kill within `move` left: the old one goes if the new one is in place, else it comes back."""
    for old in left_over(path, "old"):
        if os.path.lexists(path):
            _retire(old, path)
        else:
            old.rename(path)


def _retire(old: Path, path: Path) -> None:
    """Removes what `path` has replaced; a run to which somebody added something is kept, under a name that shows."""
    if not os.path.lexists(old):
        return
    added = [] if old.is_symlink() else strangers(old)
    if not added:
        remove(old)
        return
    kept = path.with_name(f"{path.name}_replaced-{old.name[-8:]}")
    old.rename(kept)
    print(f"{kept} is what was replaced by the new {path}: it holds what no run made ({', '.join(added[:3])}).")


def clean(paths: Sequence[Path]) -> int:
    """Removes the unfinished runs of these paths. Raises UserError at one that is being trained."""
    for made in map(unfinished, paths):
        if is_begun(made, RUN):
            with locked(made):
                remove(made)
    return 0


def sync_folder(folder: Path) -> None:
    """Puts the folder's own entries on the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _inode(path: Path) -> int | None:
    """Another number once something else was moved to this name; None while nothing is there."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _run(command: Sequence[str], lock: int) -> int:
    """The command's exit code, 128 + n after signal n.

    The command inherits the lock, which then outlives a kill of this process alone. SIGTERM goes on to the command; a
    terminal sends SIGINT to both, so this process only waits for the command's answer to it.
    """
    child = subprocess.Popen(command, pass_fds=[lock])
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    signal.signal(signal.SIGINT, lambda *_: None)
    code = child.wait()
    return code if code >= 0 else 128 - code


def main() -> int:
    match sys.argv[1:]:
        case ["once", path, "--", *command] if command:
            make = partial(once, Path(path), command)
        case ["renew", path, "--", *command] if command:
            make = partial(renew, Path(path), command)
        case ["clean", *paths] if paths:
            make = partial(clean, list(map(Path, paths)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    try:
        return make()
    except (UserError, OSError) as error:
        print(f"processes.lock: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
