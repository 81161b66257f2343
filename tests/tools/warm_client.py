"""What stands for python where a warm one is there (see warm_python.py): python warm_client.py PYTHON DOOR WORDS…"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    python, door, *words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] != "-m"):  # a flag of python's own
        os.execv(python, [python, *words])
    asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109  a second import
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"\0{door}")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        told = json.dumps(asked).encode() + b"\n"
        sent = socket.send_fds(server, [told], [0, 1, 2])
        server.sendall(told[sent:])
        code = int(server.recv(16) or -signal.SIGKILL)
    if code < 0:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
