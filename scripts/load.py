"""The runs of load.sh: starts a server for each, puts a load generator on it, and prints a line of figures.

Ends with 1 if a request failed, or if the memory of a server grew by 5 % or more from the first third of the time after 10 s to
the last one. The short form does not judge the memory.
"""

import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

EXAMPLES, SHORT = sys.argv[1], "--short" in sys.argv
SECONDS, EVERY, WARM = (3, 0.5, 1) if SHORT else (60, 5, 10)
GROWTH = 0.05
CHECK = json.dumps({"text": "the words of a text that is checked " * 24})
REPORT = json.dumps({"lines": 100})


class Server:
    """A server in a process of its own, which prints its address."""

    def __init__(self, words):
        command = [f"{EXAMPLES}/storm", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            sys.exit(f"the server does not start: {command}")

    def resident(self):
        """Resident memory in KiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])

    def cpu(self):
        """User and system time in seconds."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Samples(threading.Thread):
    """The resident memory of a server, every few seconds after the first ones."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.kib, self.ended = server, [], threading.Event()
        self.start()

    def run(self):
        self.ended.wait(WARM)
        while not self.ended.is_set():
            self.kib.append(self.server.resident())
            self.ended.wait(EVERY)

    def stop(self):
        self.ended.set()
        self.join()
        return self.kib


def wrk(url, connections, headers, body, folder):
    """Requests, failures, and the median and 99th percentile of the latency."""
    script = f"{folder}/post.lua"
    with open(script, "w") as lua:
        fields = "".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}\n" for k, v in headers.items())
        lua.write(f"wrk.method = 'POST'\nwrk.body = {json.dumps(body)}\n{fields}")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "--timeout", "10s", "-s", script, url]
    text = run(command)
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", text)))
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed += sum(map(int, errors.groups())) if errors else 0
    within = {share: time_of(value) for share, value in re.findall(r"(50|99)%\s+(\S+)", text)}
    return int(re.search(r"(\d+) requests in", text)[1]), failed, within["50"], within["99"]


def h2load(options):
    """The same with h2load, which reports the mean and the maximum."""

    def measure(url, connections, headers, body, folder):
        data = f"{folder}/body"
        with open(data, "w") as file:
            file.write(body)
        # h2load has its own name for the number of streams.
        fields = [word for k, v in headers.items() for word in ("-H", f"{k}: {v}")]
        command = ["h2load", "-t1", f"-c{connections}", f"-D{SECONDS}", f"-d{data}", *options, *fields, url]
        text = run(command)
        if url.startswith("https") and "Application protocol: h2" not in text:
            sys.exit(f"HTTP/2 was not negotiated:\n{text}")
        counts = r"(\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout"
        _, done, succeeded, *failed = map(int, re.search(counts, text).groups())
        status = list(map(int, re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text).groups()))
        times = re.search(r"time for request:\s+\S+\s+(\S+)\s+(\S+)", text)
        failures = max(sum(failed), done - succeeded) + sum(status[1:])
        return succeeded, failures, time_of(times[2]), time_of(times[1])

    return measure


def run(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{result.stdout}")
    return result.stdout


def time_of(text):
    """Milliseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[unit]


def token(*words):
    return subprocess.check_output([f"{EXAMPLES}/token", *words], text=True).strip()


def check_compression(url, headers, body):
    """The answer for a caller that accepts gzip is that of another one, in gzip."""
    answers = []
    for coding in ("identity", "gzip"):
        request = urllib.request.Request(url, body.encode(), {**headers, "accept-encoding": coding})
        with urllib.request.urlopen(request) as answer:
            raw = answer.read()
            answers.append(gzip.decompress(raw) if answer.headers["content-encoding"] == "gzip" else raw)
            is_compressed = answer.headers["content-encoding"] == "gzip"
    if not is_compressed or answers[0] != answers[1]:
        sys.exit("the answer is not compressed, or differs")


def measure(name, words, load, connections, folder, tls=False, compress=False):
    """Runs one load, prints its line, and returns whether it held."""
    headers = {"content-type": "application/json"}
    if words[0] == "serve":
        scopes = "storm:check storm:report"
        who = ["--issuer", "brain", "--subject", "ali", "--audience", "storm", "--scope", scopes]
        headers["authorization"] = "Bearer " + token("issue", "--key", f"{folder}/brain.pem", *who)
    with Server(words) as server:
        path, body = ("/report", REPORT) if compress else ("/check", CHECK)
        url = f"{'https' if tls else 'http'}://{server.address}{path}"
        if compress:
            check_compression(url, headers, body)
            headers["accept-encoding"] = "gzip"
        connections = max(connections // 10, 1) if SHORT else connections
        before, cpu, samples = server.resident(), server.cpu(), Samples(server)
        requests, failed, middle, high = load(url, connections, headers, body, folder)
        cpu, kib = server.cpu() - cpu, samples.stop()
    # The mean of the last third and that of the first one: single samples vary with the requests that run.
    third = max(len(kib) // 3, 1)
    growth = sum(kib[-third:]) / sum(kib[:third]) - 1
    print(
        f"{name:34} {requests:9} {requests / SECONDS:8.0f} {failed:6} {middle:9.1f} {high:9.1f}"
        f" {cpu / max(requests, 1) * 1e6:7.1f} {before / 1024:7.1f} {kib[0] / 1024:7.1f} {growth:7.1%}",
        flush=True,
    )
    if growth >= GROWTH:
        print(f"  resident MiB every {EVERY} s from {WARM} s on:", *(f"{value / 1024:.1f}" for value in kib))
    return requests > 0 and failed == 0 and (SHORT or growth < GROWTH)


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/brain.jwks", "w") as keys:
            keys.write(token("keygen", f"{folder}/brain.pem"))
        certificate, key = f"{folder}/tls.crt", f"{folder}/tls.key"
        run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
            + ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
        )
        full = ["serve", "--keys", f"{folder}/brain.jwks", "--issuer", "brain", "--log"]
        secure = [*full, "--certificate", certificate, "--key", key]
        print(f"{'load':34} requests    req/s failed    p50/avg   p99/max  cpu_us     mib mib_10s  growth")
        print("(wrk: p50 and p99 in ms; h2load: mean and maximum in ms; cpu_us: CPU of the server per request)")
        held = [
            measure("HTTP/1.1, 1000 connections, wrk", full, wrk, 1000, folder),
            measure("HTTP/1.1, 1000 connections", full, h2load(["--h1"]), 1000, folder),
            measure("HTTP/2, 10 connections of 100", full, h2load(["-m100"]), 10, folder),
            measure("HTTP/2, 100 connections of 100", full, h2load(["-m100"]), 100, folder),
            measure("HTTP/2, 1000 connections of 1", full, h2load(["-m1"]), 1000, folder),
            measure("HTTP/2 over TLS, 100 of 10", secure, h2load(["-m10"]), 100, folder, tls=True),
            measure("HTTP/1.1, gzip, 1000", [*full, "--compress"], h2load(["--h1"]), 1000, folder, compress=True),
            measure("hyper, HTTP/1.1, 1000, wrk", ["bare"], wrk, 1000, folder),
            measure("hyper, HTTP/2, 10 of 100", ["bare"], h2load(["-m100"]), 10, folder),
        ]
    if not all(held):
        sys.exit("a request failed, or the memory of a server grew")


main()
