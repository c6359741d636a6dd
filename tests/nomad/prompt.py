"""How far apart many services follow one change: asks a gateway for all of them, until each has answered with what is expected.

Usage: prompt.py PORT EXPECTED COUNT PATTERN      (PATTERN has a {} for a number below COUNT)
"""
import http.client
import sys
import threading
import time

port, expected, count, pattern = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3]), sys.argv[4]
WORKERS = 8
LONGEST = 120
started = time.monotonic()
answered = {}


def follow(numbers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    while numbers and time.monotonic() - started < LONGEST:
        for number in list(numbers):
            connection.request("GET", "/", headers={"host": pattern.format(number)})
            response = connection.getresponse()
            if response.read().strip() == expected and response.status == 200:
                answered[number] = time.monotonic()
                numbers.remove(number)
        time.sleep(0.05)


threads = [
    threading.Thread(target=follow, args=([n for n in range(count) if n % WORKERS == worker],)) for worker in range(WORKERS)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
first = min(answered.values(), default=started)
late = sum(at - first > 3 for at in answered.values())
last = max(answered.values(), default=started) - first
print(f"{len(answered)} of {count} answered, {late} of them more than 3 s after the first; the last one after {last:.1f} s")
sys.exit(len(answered) != count)
