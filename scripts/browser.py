"""A browser that is driven by its DevTools protocol, over two pipes."""

import json
import os
import subprocess
import time


class Browser:
    """One browser, with the events of its pages."""

    def __init__(self, program, profile):
        commands, self.out = os.pipe()
        self.come, events = os.pipe()
        # The browser reads its commands from descriptor 3, and writes to 4.
        words = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", "--remote-debugging-pipe",
        ]
        shell = ["sh", "-c", f'exec "$@" 3<&{commands} 4>&{events}', "sh", *words]
        self.process = subprocess.Popen(shell, pass_fds=(commands, events), stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(events)
        self.number, self.rest, self.events = 0, b"", []

    def send(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        number = self.number
        while True:
            message = self.receive()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def receive(self):
        while b"\0" not in self.rest:
            piece = os.read(self.come, 1 << 16)
            if not piece:
                raise RuntimeError("the browser has ended")
            self.rest += piece
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def close(self):
        try:
            self.send("Browser.close")
        except (RuntimeError, OSError):
            pass
        self.process.wait(20)


class Page:
    """A page of a browser, of which everything is noted that it asks for, logs, and may not do."""

    def __init__(self, browser, url, path, ready, width, height, media, **target):
        self.browser, self.url = browser, url
        self.target = browser.send("Target.createTarget", url="about:blank", **target)["targetId"]
        self.session = browser.send("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in media.items()])
        # Before the page: what violates its policy, and what a script wrote in spite of it, is noted.
        self.send("Page.addScriptToEvaluateOnNewDocument", source="window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective + ' ' + event.blockedURI)); window.alert = () => violations.push('alert');")
        self.send("Page.navigate", url=url + path)
        self.until(f"document.readyState === 'complete' && {ready}", "it is there")

    def send(self, method, **params):
        return self.browser.send(method, self.session, **params)

    def run(self, script):
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, script, words, seconds=20):
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise AssertionError(f"{self.url}: it is not so that {words}: {self.run('document.body?.innerText')}")
            time.sleep(0.05)

    def holds(self, script, words):
        if not self.run(f"Boolean({script})"):
            raise AssertionError(f"{self.url}: it is not so that {words}: {self.run('document.body.innerText')[:2000]}")

    def events(self):
        return [event for event in self.browser.events if event.get("sessionId") == self.session and "method" in event]

    def ends_well(self, origin, is_known):
        """Nothing went elsewhere, nothing was blocked, and the console has no error but those that are known. Closes the page."""
        self.holds("violations.length === 0", f"nothing violates the policy: {self.run('violations.join()')}")
        for event in self.events():
            params = event["params"]
            match event["method"]:
                case "Network.requestWillBeSent":
                    url = params["request"]["url"]
                    assert url.startswith((f"{origin}/", "data:image/svg")), f"a request to {url}"
                case "Runtime.exceptionThrown":
                    raise AssertionError(f"{self.url}: {params['exceptionDetails']}")
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    raise AssertionError(f"{self.url}: the console has {params}")
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    words = params["entry"]["text"]
                    assert is_known(words), f"{self.url}: the log has {words}: {params['entry'].get('url')}"
                case "Audits.issueAdded":
                    issue = params["issue"]
                    assert issue["code"] not in ("ContentSecurityPolicyIssue", "MixedContentIssue"), f"{self.url}: {issue}"
        self.browser.send("Target.closeTarget", targetId=self.target)
