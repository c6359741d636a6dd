"""Sends 50 requests a second until told to end, then says how many were answered otherwise than with 200.

Usage: load.py PORT HOST
"""
import collections
import http.client
import signal
import sys
import threading
import time

port, host = int(sys.argv[1]), sys.argv[2]
counts = collections.Counter()
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())


def one():
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/", headers={"host": host})
        response = connection.getresponse()
        response.read()
        counts[str(response.status)] += 1
        connection.close()
    except Exception as error:  # whatever a client may meet is counted by its name
        counts[type(error).__name__] += 1


threads = []
while not stopped.is_set():
    thread = threading.Thread(target=one)
    thread.start()
    threads = [t for t in threads if t.is_alive()] + [thread]
    time.sleep(0.02)
for thread in threads:
    thread.join()
good = counts.pop("200", 0)
print(f"{good} answered with 200, {sum(counts.values())} otherwise {dict(counts) or ''}".rstrip())
sys.exit(1 if counts else 0)
