"""What stands for python where a warm one is there (see warm_python.py): python warm_client.py PYTHON DOOR WORDS…"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def opened() -> list[int]:
    """The numbers of the files that this process was started with, beside its streams."""
    numbers = sorted(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208
    return [number for number in numbers if number > 2 and os.path.exists(f"/proc/self/fd/{number}")]  # noqa: PTH110


def main() -> None:
    python, door, *words = sys.argv[1:]
    if is_spawned := words[-1:] == ["--multiprocessing-fork"]:
        words = words[words.index("-c") :]  # without this python's own flags
    if not words or (words[0].startswith("-") and words[0] != "-m" and not is_spawned):  # a flag of python's own
        os.execv(python, [python, *words])
    files = [0, 1, 2, *(opened() if is_spawned else ())]
    asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "files": files}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{door}")
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        asked["blocked"] = [int(number) for number in blocked]
        told = json.dumps(asked).encode() + b"\n"
        sent = socket.send_fds(server, [told], files)
        server.sendall(told[sent:])
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        code = int(server.recv(16) or -signal.SIGKILL)
    if code < 0:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
