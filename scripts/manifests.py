"""Runs what the manifests in deploy/kubernetes describe, as processes on loopback: see manifests.sh.

Files below /etc/octollm are those of a folder, with certificates and keys that are made here. The names of services and pods are
ports that the system chooses. Everything else is as the manifests have it.
"""

import glob
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

PROGRAMS, SHORT = sys.argv[1], "--short" in sys.argv[2:]
LIMITS = {}  # The defaults of all settings, as the table for operators has them.


def check(holds, problem):
    if not holds:
        sys.exit(f"error: {problem}")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


def read():
    """The resources, by kind and name."""
    found = {}
    for file in sorted(glob.glob("deploy/kubernetes/*.yaml")):
        for resource in yaml.safe_load_all(open(file)):
            key = resource["kind"], resource["metadata"]["name"]
            check(key not in found, f"{key} is there twice")
            check(resource["kind"] == "Namespace" or resource["metadata"].get("namespace") == "octollm", f"{key} is elsewhere")
            found[key] = resource
    return found


def environment(container, found):
    """The variables of a container."""
    variables = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        check(("ConfigMap", name) in found, f"there is no config map {name}")
        variables |= found["ConfigMap", name]["data"]
    for variable in container["env"]:
        check(variable["name"] not in variables, f"{variable['name']} is set twice")
        variables[variable["name"]] = variable["value"]
    check(all(isinstance(value, str) for value in variables.values()), "a variable is no text: quote it")
    return variables


def agree(workload, found):
    """Whether a workload agrees with itself and with the resources that it names. Returns its container and the variables."""
    name, pod = workload["metadata"]["name"], workload["spec"]["template"]
    spec, labels = pod["spec"], pod["metadata"]["labels"]
    (container,) = spec["containers"]
    variables = environment(container, found)
    setting = lambda name: seconds(variables.get(name, LIMITS[name]))

    check(workload["spec"]["selector"]["matchLabels"].items() <= labels.items(), f"{name} selects other pods")
    check(spec["enableServiceLinks"] is False, f"{name} has variables for services")
    needed = setting("OCTOLLM_SERVER_DRAIN_NOTICE") + setting("OCTOLLM_SERVER_DRAIN_GRACE") + 5
    check(spec["terminationGracePeriodSeconds"] >= needed, f"{name} needs {needed} s to end")
    check("preStop" not in json.dumps(container), f"{name} has a preStop hook")

    (port,) = container["ports"]
    check(variables["OCTOLLM_SERVER_LISTEN"] == f"0.0.0.0:{port['containerPort']}", f"{name} listens on another port")
    check(pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"]), f"{name} is scraped elsewhere")
    for probe, path in [("startup", "/health"), ("readiness", "/ready"), ("liveness", "/health")]:
        probe = container[f"{probe}Probe"]
        get = probe["httpGet"]
        check((get["path"], get["port"], get["scheme"]) == (path, port["name"], "HTTPS"), f"{name} is probed elsewhere")
        check(probe["timeoutSeconds"] > setting("OCTOLLM_SERVER_CHECK_TIMEOUT"), f"the probes of {name} end before its checks")

    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    check(set(mounts.values()) == set(volumes), f"{name} has other volumes than it mounts")
    check(all("subPath" not in mount for mount in container["volumeMounts"]), f"{name} has a file that never changes")
    for volume in volumes.values():
        kind, name_of = ("Secret", "secretName") if "secret" in volume else ("ConfigMap", "name")
        check((kind, volume[kind[0].lower() + kind[1:]][name_of]) in found, f"{name} mounts what is not there: {volume}")
    for variable, value in variables.items():
        if variable.endswith("_FILE"):
            folder, file = os.path.split(value)
            volume = volumes[mounts[folder]]
            source = found["Secret", volume["secret"]["secretName"]] if "secret" in volume else found["ConfigMap", volume["configMap"]["name"]]
            check(file in (source.get("stringData") or source["data"]), f"{variable} of {name} names no file of its volume")

    service = found["Service", name]["spec"]
    check(service["selector"].items() <= labels.items(), f"the service {name} selects other pods")
    check([entry["port"] for entry in service["ports"]] == [port["containerPort"]], f"the service {name} has another port")
    check(service["ports"][0]["targetPort"] == port["name"], f"the service {name} has another target")
    policy = found["NetworkPolicy", name]["spec"]
    check(policy["podSelector"]["matchLabels"].items() <= labels.items(), f"the policy {name} selects other pods")
    check(policy["ingress"][0]["ports"][0]["port"] == port["containerPort"], f"the policy {name} has another port")
    if ("PodDisruptionBudget", name) in found:
        budget = found["PodDisruptionBudget", name]["spec"]
        check(budget["selector"]["matchLabels"].items() <= labels.items(), f"the budget {name} selects other pods")
        check(workload["spec"]["replicas"] > 1, f"the budget {name} keeps the only pod")
    return container, variables


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def make_files(folder):
    """What is below /etc/octollm in a pod: certificates for localhost by an authority of their own, and keys of three roots."""
    os.makedirs(f"{folder}/tls")
    authority = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    run(*authority, "-keyout", f"{folder}/ca.key", "-out", f"{folder}/tls/ca.crt")
    request = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    run(*request, "-keyout", f"{folder}/tls/tls.key", "-out", f"{folder}/tls.csr")
    with open(f"{folder}/names", "w") as names:
        names.write("subjectAltName=DNS:localhost")
    sign = ["openssl", "x509", "-req", "-days", "1", "-CAcreateserial", "-extfile", f"{folder}/names"]
    run(*sign, "-in", f"{folder}/tls.csr", "-CA", f"{folder}/tls/ca.crt", "-CAkey", f"{folder}/ca.key", "-out", f"{folder}/tls/tls.crt")
    os.makedirs(f"{folder}/keys")
    for root in ["portal", "reflex", "brain"]:
        os.makedirs(f"{folder}/{root}-key")
        with open(f"{folder}/keys/{root}.json", "w") as keys:
            keys.write(run(f"{PROGRAMS}/token", "keygen", f"{folder}/{root}-key/key.pem"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Pod:
    """A container that runs as a process."""

    def __init__(self, name, container, variables, folder, ports, log):
        self.name, self.port = name, ports[name]
        self.variables = {}
        for variable, value in variables.items():
            value = value.replace("/etc/octollm/key/", f"{folder}/{container['name']}-key/").replace("/etc/octollm", folder)
            for other, port in ports.items():
                value = re.sub(rf"//{re.escape(other)}:\d+", f"//localhost:{port}", value)
            self.variables[variable] = value
        self.variables["OCTOLLM_SERVER_LISTEN"] = f"127.0.0.1:{self.port}"
        if SHORT:
            self.variables["OCTOLLM_SERVER_DRAIN_NOTICE"] = "2s"
        self.log = open(log, "w")
        command = [f"{PROGRAMS}/deployed", *container["args"]]
        self.process = subprocess.Popen(command, env=self.variables, stdout=self.log, stderr=self.log)

    def get(self, path, data=None, token=None):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(f"https://localhost:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, context=self.trust, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return None, None


def until(limit, what, condition):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    sys.exit(f"error: {what}, also after {limit} s")


def use(pods, folder):
    """A task from the edge to the arm, with a token; and without one."""
    reflex = next(pod for pod in pods if pod.name == "reflex")
    key = f"{folder}/portal-key/key.pem"
    token = run(
        f"{PROGRAMS}/token", "issue", "--key", key, "--issuer", "portal", "--subject", "ali", "--audience", "reflex",
        "--scope", "task:run text:count",
    ).strip()
    goal = json.dumps({"goal": "ten arms, one brain"}).encode()
    status, _ = reflex.get("/tasks", goal)
    check(status == 401, f"a task without a token is answered {status}")
    status, _ = reflex.get("/tasks", json.dumps({"goal": "the password"}).encode(), token)
    check(status == 403, f"a task that the reflex refuses is answered {status}")
    for _ in range(4):
        status, task = reflex.get("/tasks", goal, token)
        check(status == 202, f"a task is answered {status}: {task}")
        path = f"/tasks/{task['task_id']}"
        ended = lambda: (lambda task: task if task[1]["status"] in ("completed", "failed") else None)(reflex.get(path, None, token))
        _, task = until(20, "the task does not end", ended)
        check(task["status"] == "completed" and task["result"]["output"] == "4 words", f"the task ended as {task}")


def scrape(pods, folder, workloads):
    """Lets Prometheus find the pods as it would in a cluster: by their address and their annotations."""
    with open("deploy/prometheus.yml") as file:
        config = yaml.safe_load(file)
    (job,) = config["scrape_configs"]
    check(job.pop("kubernetes_sd_configs")[0]["namespaces"]["names"] == ["octollm"], "other namespaces are scraped")
    job["static_configs"] = []
    for pod in pods:
        template = workloads[pod.name]["spec"]["template"]
        labels = {"__meta_kubernetes_namespace": "octollm", "__meta_kubernetes_pod_name": pod.name}
        for annotation, value in template["metadata"]["annotations"].items():
            labels["__meta_kubernetes_pod_annotation_" + re.sub(r"[^a-z]", "_", annotation)] = value
        # Any port of the pod is found, and the annotation names the one that is scraped.
        labels["__meta_kubernetes_pod_annotation_prometheus_io_port"] = str(pod.port)
        job["static_configs"].append({"targets": ["127.0.0.1:1"], "labels": labels})
    job["static_configs"].append({"targets": ["127.0.0.1:1"], "labels": {"__meta_kubernetes_pod_name": "another"}})
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config["rule_files"] = [os.path.realpath("deploy/alerts.yml")]
    with open(f"{folder}/prometheus.yml", "w") as file:
        yaml.safe_dump(config, file)
    run("promtool", "check", "config", f"{folder}/prometheus.yml")
    listen = f"127.0.0.1:{free_port()}"
    log = open(f"{folder}/prometheus.log", "w")
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen([*command, f"--web.listen-address={listen}"], stdout=log, stderr=log)

    def found():
        query = urllib.parse.quote('octollm_http_requests_total{route="/ready"} and on (instance) up == 1')
        try:
            with urllib.request.urlopen(f"http://{listen}/api/v1/query?query={query}", timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return False
        return {series["metric"]["pod"] for series in found} == {pod.name for pod in pods}

    try:
        until(30, "Prometheus does not find the pods", found)
    finally:
        process.terminate()
        process.wait()


def end(pods, workloads):
    """Each pod is not ready after SIGTERM, still answers, and ends by itself within its grace period."""
    for pod in pods:
        pod.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    for pod in pods:
        until(2, f"{pod.name} is still ready", lambda: pod.get("/ready")[0] == 503)
        check(pod.get("/health")[0] == 200, f"{pod.name} does not answer during its notice")
    for pod in pods:
        grace = workloads[pod.name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        try:
            code = pod.process.wait(begun + grace - time.monotonic())
        except subprocess.TimeoutExpired:
            sys.exit(f"error: {pod.name} does not end within {grace} s")
        check(code == 0, f"{pod.name} ended with {code}")
    return time.monotonic() - begun


def main():
    for name, default in re.findall(r"^\| `(OCTOLLM_[A-Z_]+)` \|.*\| `(\S+)` \|$", open("docs/operations.md").read(), re.M):
        LIMITS[name] = default
    found = read()
    workloads, pods = {}, []
    planned = []
    for (kind, name), resource in found.items():
        if kind in ("Deployment", "StatefulSet"):
            container, variables = agree(resource, found)
            replicas = resource["spec"]["replicas"] if kind == "StatefulSet" else 1
            names = [f"{name}-{number}.{name}" for number in range(replicas)] if kind == "StatefulSet" else [name]
            for pod in names:
                workloads[pod] = resource
                planned.append((pod, container, variables))
    named = {match for _, _, variables in planned for value in variables.values() for match in re.findall(r"https?://([^:/,]+):", value)}
    check(named <= set(workloads), f"no pod has these names: {named - set(workloads)}")
    print(f"manifests: {len(found)} resources agree")

    with tempfile.TemporaryDirectory() as folder:
        make_files(folder)
        Pod.trust = ssl.create_default_context(cafile=f"{folder}/tls/ca.crt")
        ports = {name: free_port() for name, _, _ in planned}
        try:
            for name, container, variables in planned:
                pods.append(Pod(name, container, variables, folder, ports, f"{folder}/{name}.log"))
            for pod in pods:
                until(30, f"{pod.name} does not start", lambda: pod.get("/health")[0] == 200 or pod.process.poll() is not None)
                status, ready = pod.get("/ready")
                check(status == 200, f"{pod.name} is not ready: {ready}")
            use(pods, folder)
            scrape(pods, folder, workloads)
            print(f"system: {len(pods)} pods ended {end(pods, workloads):.1f} s after SIGTERM")
        except SystemExit:
            for pod in pods:
                pod.log.flush()
                print(f"-- {pod.name}\n{''.join(open(pod.log.name).readlines()[-8:])}", file=sys.stderr)
            raise
        finally:
            for pod in pods:
                pod.process.kill()
                pod.process.wait()


main()
