"""What a large catalog costs: thousands of services that expose themselves, one agent, one Consul, over HTTP/1 and HTTPS.

Starts a real Consul, registers the services, starts an agent with its Envoy, and measures from outside: connections at
Consul, requests a second while nothing happens, CPU of Consul and of the agent, memory, and how long a new service and a
changed instance take to be served. Prints a Markdown table; docs/large-catalogs.md holds the last one.

Usage: measure.py [SERVICES]     (5000; needs `make setup` and a portreeve in PORTREEVE or target/release or target/debug)
"""
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SERVICES = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
BASE = int(os.environ.get("BASE", "4000"))
PORTS = {name: BASE + number for number, name in enumerate(
    ["consul", "consul_tls", "consul_server", "consul_serf", "gateway", "ready", "one", "two"], 500)}
os.environ["PATH"] = f"{ROOT}/target/tools/bin:{os.environ['PATH']}"
for name in list(os.environ):
    if name.startswith(("CONSUL_", "VAULT_", "NOMAD_")) or name.lower().endswith("_proxy"):
        del os.environ[name]
candidates = [os.environ.get("PORTREEVE"), ROOT / "target/release/portreeve", ROOT / "target/debug/portreeve"]
PORTREEVE = next(str(path) for path in candidates if path and pathlib.Path(path).exists())
DIR = pathlib.Path(tempfile.mkdtemp(prefix="prc", dir="/tmp"))
running = []


def start(name, *command):
    log = open(DIR / f"{name}.log", "ab")
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=DIR)
    running.append(process)
    return process


def stop(process, limit=40):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Backend(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def consul(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", PORTS["consul"], timeout=60)
    connection.request(method, path, body=None if body is None else json.dumps(body))
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{method} {path}: {response.status} {text!r}")
    return json.loads(text or b"null")


def register(number, port, **more):
    """As an external node has it: 5,000 services on the agent itself would measure Consul's anti-entropy."""
    name = f"service-{number:05}"
    service = {"Service": name, "ID": name, "Address": "127.0.0.1", "Port": port, "Tags": ["portreeve"], **more}
    consul("PUT", "/v1/catalog/register", {"Node": "elsewhere", "Address": "127.0.0.1", "SkipNodeUpdate": True, "Service": service})


def ask(number):
    """Status and answer of one request to a service's host. A path of its own avoids nothing: Envoy caches nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", PORTS["gateway"], timeout=5)
    try:
        connection.request("GET", "/", headers={"host": f"service-{number:05}.apps.example.com"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def until(what, limit, condition):
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit:
            raise RuntimeError(f"no {what} within {limit} s")
        time.sleep(0.002)
    return time.monotonic() - began


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def connections(pid, port):
    """Of one process to one port of this machine, established."""
    inodes = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = (line.split() for line in lines)
    return sum(1 for row in rows if row[9] in inodes and row[3] == "01" and int(row[2].split(":")[1], 16) == port)


def requests_of(agent_port):
    """What the agent says it has asked of all its watches, and how many of these failed."""
    connection = http.client.HTTPConnection("127.0.0.1", agent_port, timeout=30)
    connection.request("GET", "/metrics")
    total = errors = 0.0
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith("portreeve_source_requests_total"):
            total += float(line.rsplit(" ", 1)[1])
        elif line.startswith("portreeve_source_errors_total"):
            errors += float(line.rsplit(" ", 1)[1])
    return total, errors


def settings(tls):
    block = f'address = "https://127.0.0.1:{PORTS["consul_tls"]}"\n  ca_file = "{DIR}/ca.pem"' if tls \
        else f'address = "127.0.0.1:{PORTS["consul"]}"'
    path = DIR / f"agent-{tls}.hcl"
    path.write_text(f"""
gateways  = ["edge"]
node_name = "measured"
bind_addr = "127.0.0.1"
data_dir  = "{DIR}/data-{tls}"
log_level = "warn"
consul {{
  {block}
}}
kv_documents {{
}}
catalog {{
  default_host = "{{service}}.apps.example.com"
}}
envoy {{
  supervise   = true
  concurrency = 1
  drain_time  = "1s"
}}
api {{
  address = "127.0.0.1:{PORTS['ready']}"
}}
""")
    return path


def measure(tls, server, spare):
    found = {}
    agent = start(f"agent-{tls}", PORTREEVE, "agent", "-config", str(settings(tls)))
    try:
        last = SERVICES - 1
        found["from the agent's start to all served, s"] = until(
            "first publication", 600, lambda: ask(0)[0] == 200 and ask(last)[0] == 200)
        time.sleep(30)
        port = PORTS["consul_tls" if tls else "consul"]
        before = (time.monotonic(), cpu(server.pid), cpu(agent.pid), *requests_of(PORTS["ready"]))
        most = 0
        for _ in range(60):
            most = max(most, connections(agent.pid, port))
            time.sleep(1)
        after = (time.monotonic(), cpu(server.pid), cpu(agent.pid), *requests_of(PORTS["ready"]))
        seconds = after[0] - before[0]
        found["connections to Consul, at most"] = most
        found["requests to Consul a second, idle"] = (after[3] - before[3]) / seconds
        found["requests that failed"] = after[4]
        found["Consul's CPU, idle, % of a core"] = 100 * (after[1] - before[1]) / seconds
        found["the agent's CPU, idle, % of a core"] = 100 * (after[2] - before[2]) / seconds
        found["the agent's memory, MiB"] = memory(agent.pid)
        fresh, moved = [], []
        for step in range(10):
            number = spare + step
            register(number, PORTS["one"])
            fresh.append(until("new service", 60, lambda: ask(number) == (200, str(PORTS["one"]))))
            time.sleep(0.2)
        # Spread over the catalog: most have no connection of their own over HTTP/1.
        for step in range(10):
            number = step * SERVICES // 10
            register(number, PORTS["two"])
            moved.append(until("moved instance", 120, lambda: ask(number) == (200, str(PORTS["two"]))))
            register(number, PORTS["one"])
        found["a new service, from its registration to its first answer, median ms"] = 1000 * statistics.median(fresh)
        found["the longest of ten, ms"] = 1000 * max(fresh)
        found["an instance that moved, median ms"] = 1000 * statistics.median(moved)
        found["the longest of ten moves, ms"] = 1000 * max(moved)
        return found
    finally:
        stop(agent)


def certificate():
    run = lambda *command: subprocess.run(command, check=True, cwd=DIR, capture_output=True)
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem")


def main():
    certificate()
    (DIR / "consul.json").write_text(json.dumps({
        "server": True, "bootstrap_expect": 1, "node_name": "n1", "data_dir": f"{DIR}/consul", "bind_addr": "127.0.0.1",
        "client_addr": "127.0.0.1", "disable_update_check": True, "log_level": "warn",
        "ports": {"http": PORTS["consul"], "https": PORTS["consul_tls"], "server": PORTS["consul_server"],
                  "serf_lan": PORTS["consul_serf"], "serf_wan": -1, "dns": -1, "grpc": -1},
        "cert_file": f"{DIR}/ca.pem", "key_file": f"{DIR}/key.pem", "performance": {"raft_multiplier": 1},
    }))
    server = start("consul", "consul", "agent", f"-config-file={DIR}/consul.json")
    for name in ("one", "two"):
        backend = Backend(("127.0.0.1", PORTS[name]), Handler)
        threading.Thread(target=backend.serve_forever, daemon=True).start()

    def leads():
        try:
            return bool(consul("GET", "/v1/status/leader"))
        except (OSError, RuntimeError):
            return False

    until("Consul", 60, leads)
    consul("PUT", "/v1/catalog/register", {"Node": "elsewhere", "Address": "127.0.0.1"})
    for number in range(SERVICES):
        register(number, PORTS["one"])
    gateway = f'gateway "edge" {{\n  listener "web" {{\n    port = {PORTS["gateway"]}\n  }}\n}}\n'
    connection = http.client.HTTPConnection("127.0.0.1", PORTS["consul"])
    connection.request("PUT", "/v1/kv/portreeve/config/edge", body=gateway)
    connection.getresponse().read()
    print(f"{SERVICES} services registered", file=sys.stderr)
    plain = measure(False, server, SERVICES)
    print(plain, file=sys.stderr)
    tls = measure(True, server, SERVICES + 100)
    print("| | HTTP/1 | HTTPS (HTTP/2) |\n|---|---|---|")
    for name, value in plain.items():
        print(f"| {name} | {value:.1f} | {tls[name]:.1f} |".replace(".0 |", " |"))


try:
    main()
finally:
    for process in reversed(running):
        if process.poll() is None:
            stop(process)
    if os.environ.get("KEEP"):
        print(f"kept: {DIR}", file=sys.stderr)
    else:
        shutil.rmtree(DIR, ignore_errors=True)
