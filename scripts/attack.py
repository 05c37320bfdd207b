#!/usr/bin/env python3
"""So many requests at once over HTTP, each on a connection of its own, of a kind that is to be refused; how soon they are.

    scripts/attack.py PORT KIND [COUNT [BYTES]]

KIND: big (a prompt of 1 MiB), ones (a prompt of "1"), letters (random ones), words (of FILE in the environment variable TEXT), ids
(a list of token ids). COUNT is 64 by default, BYTES 128 KiB of text, or 440 kB of ids.

Meanwhile another client, at 127.0.0.2, asks for a token after a text of 6 kB; it says how long that took at most.
"""
import collections
import json
import os
import random
import socket
import sys
import threading
import time


def body(kind, number, size):
    if kind == "big":
        prompt = "1" * (1 << 20)
    elif kind == "ones":
        prompt = "1" * size
    elif kind == "letters":
        prompt = "".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=size))
    elif kind == "words":
        with open(os.environ["TEXT"], encoding="utf-8") as text:
            prompt = text.read()[number * 100 :].encode()[:size].decode(errors="ignore")
    elif kind == "ids":
        prompt = [1] * (size // 2)
    else:
        sys.exit(__doc__)
    return json.dumps({"model": "base", "prompt": prompt, "max_tokens": 1}, separators=(",", ":")).encode()


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    port, kind = int(sys.argv[1]), sys.argv[2]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    size = int(sys.argv[4]) if len(sys.argv) > 4 else 440_000 if kind == "ids" else 128 << 10
    bodies = [body(kind, number, size) for number in range(count)]
    ready, answers = threading.Barrier(count), [None] * count

    def exchange(body, source, ready=lambda: None):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: choir\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
        ready()
        begun = time.monotonic()
        try:
            connection.sendall(head.encode() + body)
        except OSError:
            pass  # refused by its head, and closed
        try:
            answer = connection.recv(400)
        except OSError:
            answer = b"closed"
        connection.close()
        return time.monotonic() - begun, answer.split(b"\r\n")[0].decode()

    def ask(number):
        answers[number] = exchange(bodies[number], "127.0.0.1", ready.wait)

    def neighbour(asked):
        text = {"model": "base", "prompt": "In the beginning " * 360, "max_tokens": 1}
        while not asked or not over.is_set():
            asked.append(exchange(json.dumps(text).encode(), "127.0.0.2"))

    asked, over = [], threading.Event()
    beside = threading.Thread(target=neighbour, args=(asked,))
    beside.start()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    beside.join()
    times = sorted(1e3 * seconds for seconds, _ in answers)
    codes = dict(collections.Counter(line for _, line in answers))
    print(f"{kind}: {codes}; median {times[count // 2]:.0f} ms, p99 {times[min(count - 1, count * 99 // 100)]:.0f} ms")
    codes = dict(collections.Counter(line for _, line in asked))
    print(f"another client: {codes}; {1e3 * max(seconds for seconds, _ in asked):.0f} ms at most")


main()
