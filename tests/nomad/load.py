"""A load balancer with its clients: sends requests to whichever gateways Consul shows as passing, over connections that it
keeps, until told to end. Then says how many were answered otherwise than with 200, and how long each gateway's port was
closed.

Usage: load.py RATE CONSUL SERVICE PORT HOST...       (the token is in CONSUL_HTTP_TOKEN)
       load.py RATE - ADDRESS PORT HOST...            (one gateway, that no Consul shows)

A HOST@PORT is asked over TLS on that port, with a handshake of its own for each request.
"""
import collections
import http.client
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.request

rate, consul, service, port, hosts = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]
WORKERS = 8
started = time.monotonic()
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
lock = threading.Lock()
passing, seen = [], {}
counts, failures = collections.Counter(), []


def follow():
    """Who is passing, asked five times a second."""
    url = f"http://{consul}/v1/health/service/{service}?passing"
    request = urllib.request.Request(url, headers={"x-consul-token": os.environ.get("CONSUL_HTTP_TOKEN", "")})
    while not stopped.is_set():
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                found = json.load(answer)
        except OSError:
            found = None  # Consul is away: who was passing is the best guess
        if found is not None:
            now = [(entry["Service"]["Address"] or entry["Node"]["Address"], port) for entry in found]
            with lock:
                passing[:] = sorted(now)
                for address in now:
                    seen.setdefault(address, 0.0)
        time.sleep(0.2)


def knock():
    """Whether each gateway's port is open, asked twenty times a second."""
    while not stopped.is_set():
        for address in list(seen):
            try:
                socket.create_connection(address, timeout=2).close()
            except OSError:
                seen[address] += 0.05
        time.sleep(0.05)


def shake_hands(address, port, name):
    """A connection of its own. Who the certificate is from is asked elsewhere."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPConnection(address, port, timeout=10)
    plain = socket.create_connection((address, port), timeout=10)
    connection.sock = trusting.wrap_socket(plain, server_hostname=name)
    return connection


def send(number):
    connections = {}
    turn = number
    due = time.monotonic() + number * WORKERS / rate / WORKERS
    while not stopped.is_set():
        time.sleep(max(0.0, due - time.monotonic()))
        due += WORKERS / rate
        turn += 1
        with lock:
            there = list(passing)
        # Who left has closed the connection, or is about to.
        for address in connections.keys() - set(there):
            connections.pop(address).close()
        if not there:
            note("nobody passing", None)
            continue
        address, host = there[turn % len(there)], hosts[turn // 2 % len(hosts)]
        host, _, over_tls = host.partition("@")
        try:
            if over_tls:
                connection = shake_hands(address[0], int(over_tls), host)
            else:
                connection = connections.get(address) or http.client.HTTPConnection(*address, timeout=10)
                connections[address] = connection
            connection.request("GET", "/", headers={"host": host})
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                with lock:
                    counts["200"] += 1
            else:
                note(f"{response.status} {response.getheader('x-portreeve-reason') or ''}".strip(), address)
            if response.will_close or over_tls:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            note(type(error).__name__, address)
            if connection := connections.pop(address, None):
                connection.close()


def note(what, address):
    with lock:
        counts[what] += 1
        if len(failures) < 10:
            failures.append(f"  after {time.monotonic() - started:.1f} s, {address}: {what}")


threads = [threading.Thread(target=follow), threading.Thread(target=knock)]
threads += [threading.Thread(target=send, args=(number,)) for number in range(WORKERS)]
if consul == "-":
    passing.append((service, port))
    seen[passing[0]] = 0.0
    threads.pop(0)
else:
    threads[0].start()
while not passing and not stopped.is_set():
    time.sleep(0.05)
for thread in threads:
    if not thread.ident:
        thread.start()
for thread in threads:
    thread.join()
good = counts.pop("200", 0)
print(f"{good} requests answered with 200, {sum(counts.values())} otherwise {dict(counts) or ''}".rstrip())
for (address, _), closed in sorted(seen.items()):
    if closed:
        print(f"  {address}:{port} was closed for {closed:.1f} s")
for line in failures:
    print(line)
sys.exit(1 if counts else 0)
