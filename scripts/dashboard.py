"""Drives the page at /dashboard in a browser, for dashboard.sh.

dashboard.py CHROMIUM EXAMPLES FOLDER [--short | --pictures DIR]

The servers are those of the examples `dashboard` and `token` in EXAMPLES. On every page: no request goes to another origin, nothing violates the
content security policy, and the console has no error but of connections that were cut and of answers that are expected.
"""

import base64
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

from browser import Browser, Page

PREFIX = "/desk"
HTML = "<img src=x onerror=\"document.title='injected'\"><script>document.title='injected'</script>"


class Server:
    """A process of the example `dashboard`."""

    def __init__(self, program, *words):
        self.process = subprocess.Popen([program, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = self.process.stdout.readline().strip().removesuffix("/dashboard")
        assert self.url, "it has not started"
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def ask(self, path, body=None, method=None, token=None):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers, method=method), timeout=20) as answer:
            return json.load(answer)

    def submit(self, goal, token=None):
        return self.ask("/tasks", {"goal": goal}, token=token)["task_id"]

    def status(self, task, token=None):
        return self.ask(f"/tasks/{task}", token=token)["status"]


class Proxy:
    """Passes connections on, without the prefix of their requests, until they are cut."""

    def __init__(self, port):
        self.target, self.open, self.lock = port, set(), threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            caller, _ = self.listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 5)
                server.settimeout(None)
            except OSError:
                caller.close()
                continue
            with self.lock:
                self.open |= {caller, server}
            threading.Thread(target=self.copy, args=(caller, server, True), daemon=True).start()
            threading.Thread(target=self.copy, args=(server, caller, False), daemon=True).start()

    def copy(self, source, sink, is_request):
        try:
            while piece := source.recv(1 << 16):
                if is_request:
                    piece = re.sub(rb"^([A-Z]+) " + PREFIX.encode() + rb"/", rb"\1 /", piece)
                sink.sendall(piece)
        except OSError:
            pass
        for one in (source, sink):
            self.shut(one)
        with self.lock:
            self.open -= {source, sink}

    @staticmethod
    def shut(one):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cut(self):
        with self.lock:
            for one in self.open:
                self.shut(one)


class Dashboard(Page):
    def __init__(self, browser, url, view="", width=1440, height=900, dark=False, still=True):
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" if still else "no-preference"}
        # A tab in the background is hidden.
        super().__init__(browser, url, f"/dashboard{view}", "document.getElementById('views')", width, height, media, newWindow=True)

    def key(self, key, code=None):
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=code or key, windowsVirtualKeyCode={"Enter": 13, "Tab": 9, "Escape": 27, "ArrowDown": 40}.get(key, 0), **(more if kind == "keyDown" else {}))

    def type(self, text):
        self.send("Input.insertText", text=text)

    def is_live(self):
        self.until("document.getElementById('live').textContent.startsWith('live')", "it is live", 40)

    def row(self, task):
        return f"document.querySelector('#tasks [data-id={task}]')"

    def picture(self, file):
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def is_sound(self):
        """What holds of the markup in every state."""
        self.holds("document.documentElement.scrollWidth <= innerWidth", f"nothing is wider than the window: {self.run('location.hash')}")
        self.holds("[...document.querySelectorAll('input')].every((one) => one.labels.length || one.ariaLabel)", "every field has a label")
        self.holds("[...document.querySelectorAll('button, summary, a')].every((one) => one.textContent.trim() || one.ariaLabel)", "every control has a name")
        self.holds("new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size === document.querySelectorAll('[id]').length", "no id is there twice")
        self.holds("document.querySelectorAll('header, nav[aria-label], main, [aria-live], section[aria-labelledby]').length >= 8", "it has landmarks")
        self.holds("!document.querySelector('img, iframe, object, embed, [style*=url]')", "no text became markup")
        self.holds("document.querySelectorAll('script').length === 1 && !document.title.includes('injected')", "no text became a script")

    def headers(self, name):
        """The values of a header field in the requests of the page."""
        sent = [event["params"]["request"] for event in self.events() if event["method"] == "Network.requestWillBeSent"]
        return [value for one in sent for key, value in one["headers"].items() if key.lower() == name]

    def end(self, refused=(), is_cut=False):
        """Nothing went elsewhere, nothing was blocked, nothing was wrong but the answers that are listed, and cut connections."""
        self.is_sound()
        self.holds("document.cookie === '' && localStorage.length === 0", "nothing is stored but in the session")
        # The browser logs every answer from 400 on, and every connection that is lost.
        self.ends_well(self.url, lambda words: any(f"status of {status}" in words for status in refused) or (is_cut and "net::ERR_" in words))



def check_tasks(browser, server, proxy):
    page = Dashboard(browser, proxy.url + PREFIX)
    page.is_live()
    page.run("window.stays = true")
    page.until("!document.getElementById('tasks-note').hidden", "there are no tasks yet")
    task = server.submit("What does an octopus know?")
    page.until(page.row(task), "a task that is submitted elsewhere appears", 5)
    page.until(f"{page.row(task)}.classList.contains('processing')", "it runs")
    # By the keyboard: from the filter to the list, to the task, and back.
    page.run("document.getElementById('task-filter').focus()")
    for _ in range(2):
        page.key("Tab")
    page.holds(f"document.activeElement === {page.row(task)}.querySelector('a')", "Tab leads to the list")
    page.key("Enter")
    page.until("document.getElementById('goal')?.textContent === 'What does an octopus know?'", "Enter opens the task")
    page.until("(window.early = document.querySelector('#detail .stream').textContent).length > 20", "its words arrive")
    page.holds(f"{page.row(task)}.classList.contains('processing')", "they arrive while it runs")
    page.until(f"{page.row(task)}.classList.contains('completed')", "it completes")
    page.until("document.querySelectorAll('.call.answered').length === 5", "its calls are listed")
    shown = page.run("document.getElementById('detail').innerText")
    for words in ("task.run", "source.find", "retriever", "text.write", "judge", "702", "$0.0029", "Output", '"score": 92'):
        assert words in shown, f"{words} is not in {shown}"
    for words, is_listed in (("task.run", True), ("text.other", False), ("", True)):
        page.run(f"(box => {{ box.value = '{words}'; box.dispatchEvent(new Event('input')); }})(document.getElementById('task-filter'))")
        page.holds(f"Boolean({page.row(task)}) === {str(is_listed).lower()}", f"the list is filtered by the contract: {words}")
    text = page.run("document.querySelector('#detail .stream').textContent")
    assert text == server.ask(f"/tasks/{task}")["result"]["output"]["answer"], text
    page.key("Escape")
    page.until("!('detail' in document.body.dataset)", "Escape closes it")
    page.holds(f"document.activeElement === {page.row(task)}.querySelector('a')", "the focus returns to its row")
    other = server.submit("Another one")
    page.until(page.row(other), "another one appears")
    page.run(f"{page.row(other)}.querySelector('a').focus()")
    page.key("ArrowDown")
    page.holds(f"document.activeElement === {page.row(task)}.querySelector('a')", "arrows move in the list")
    page.run("document.querySelector('[data-status=completed]').click()")
    page.until(page.row(task), "it is among those that are completed")
    page.until(page.row(other), "and so is the other one, once it is")
    page.run("document.querySelector('[data-status=\"\"]').click()")
    page.until(page.row(other), "all are listed again")

    page.run(f"location.hash = '#/tasks/{server.submit('hold on')}'")
    page.until("[...document.querySelectorAll('#detail .danger')].length", "it can be cancelled")
    page.run("document.querySelector('#detail .danger').click()")
    page.holds("document.querySelector('#detail .danger').textContent === 'Cancel it?'", "it asks first")
    page.run("document.querySelector('#detail .danger').click()")
    page.until("document.querySelector('#detail .pill.cancelled')", "it is cancelled")
    assert server.status(page.run("location.hash.split('/')[2]")) == "cancelled"
    page.holds("!document.querySelector('#detail .danger')", "it can be cancelled no more")

    failed = server.submit("fail: " + HTML)
    page.run(f"location.hash = '#/tasks/{failed}'")
    page.until("document.querySelector('#detail .pill.failed')", "it fails")
    page.until("document.querySelector('.call.failed')", "its failed call is listed")
    shown = page.run("document.getElementById('detail').innerText")
    for words in (HTML, "contradicts its second source", "step judge"):
        assert words in shown, f"{words} is not in {shown}"
    page.holds(f"document.querySelector('#tasks').innerText.includes({json.dumps(HTML)})", "markup is text in the list")
    turned = server.submit("fail: ab\u202edc\u2066\u001b")
    page.until(page.row(turned), "a task with a text that turns around is listed")
    page.run(f"location.hash = '#/tasks/{turned}'")
    page.until("document.querySelector('#detail .pill.failed') && document.querySelector('#detail .stream')?.textContent.includes('ab')", "it fails")
    page.holds(f"{page.row(turned)}.querySelector('.goal').textContent === 'fail: ab\\\\u{{202e}}dc\\\\u{{2066}}\\\\u{{1b}}'", "what turns a text around is an escape")
    page.holds("!/[\\u001b\\u202e\\u2066]/.test(document.documentElement.outerHTML)", "it is nowhere in the page")
    page.holds("[...document.querySelectorAll('#tasks .goal, #goal, #detail .stream, #detail .error')].every((one) => getComputedStyle(one).unicodeBidi === 'isolate')", "texts are isolated")
    page.run(f"location.hash = '#/tasks/{failed}'")
    page.until("document.querySelector('#detail .pill.failed')", "the one before is displayed again")
    page.run("document.querySelector('#detail .actions .main').click()")
    page.until("document.querySelector('[data-value=attempt]').textContent === '2'", "it is run again")
    page.until("document.querySelector('#detail .pill.failed')", "it fails again")
    page.holds("window.stays", "it was never loaded again")
    page.holds("document.getAnimations().length === 0", "nothing moves where motion is to be reduced")
    page.end()


def check_lost(browser, server, proxy, restart):
    page = Dashboard(browser, proxy.url + PREFIX)
    page.is_live()
    page.run("window.stays = true")
    task = server.submit("A stream that breaks")
    page.until(page.row(task), "it appears")
    page.run(f"location.hash = '#/tasks/{task}'")
    for length in (40, 200):
        page.until(f"document.querySelector('#detail .stream')?.textContent.length > {length}", "words arrive")
        proxy.cut()
    page.until("document.querySelector('#detail .pill.completed')", "it completes")
    page.until("document.querySelectorAll('#detail .stream')[0].textContent.endsWith('as well.')", "the stream goes on")
    text = page.run("document.querySelector('#detail .stream').textContent")
    assert text == server.ask(f"/tasks/{task}")["result"]["output"]["answer"], f"words are missing or there twice: {text}"
    resumed = page.headers("last-event-id")
    assert any(int(one) > 2 for one in resumed if one.isdigit()), f"it resumes after what it has: {resumed}"
    if restart:
        server.kill()
        page.until("!document.getElementById('banner').hidden", "it says that the connection is lost")
        server = restart()
        proxy.target = server.port
        page.run("location.hash = '#/tasks'")
        page.is_live()
        task = server.submit("After the restart")
        page.until(page.row(task), "a task of the next process appears")
        page.holds("document.getElementById('banner').hidden && window.stays", "it returns by itself")
    page.end(refused=(404,), is_cut=True)
    return server


def check_views(browser, server, proxy):
    page = Dashboard(browser, proxy.url + PREFIX, "#/arms")
    page.until("document.querySelectorAll('#arms .card').length === 3", "the arms are listed")
    page.until("document.querySelectorAll('#arms .card-head .healthy').length === 3", "they are healthy")
    page.until("document.querySelectorAll('#arms .breaker-closed').length === 3", "their breakers are closed")
    page.run("document.querySelector('#arms summary').click()")
    page.until("document.querySelector('#arms .card').innerText.includes('text.judge')", "they have contracts")

    page.run("location.hash = '#/events'")
    page.is_live()
    server.submit("For the events")
    page.until("['task.queued', 'task.started', 'task.progress', 'task.completed'].every((type) => document.getElementById('events').innerText.includes(type))", "events appear")
    page.run("document.getElementById('pause').click()")
    page.run("document.getElementById('clear').click()")
    task = server.submit("While it is paused")
    page.until("/[1-9] new event/.test(document.getElementById('events-note').textContent)", "they are counted")
    page.holds("document.getElementById('events').children.length === 0", "they are held back")
    page.run("document.getElementById('pause').click()")
    page.until(f"document.getElementById('events').innerText.includes('{task}')", "they are displayed then")
    page.run("document.getElementById('pattern').value = 'events:task:completed'; document.getElementById('events-form').requestSubmit(); document.getElementById('clear').click()")
    page.is_live()
    server.submit("Through a filter")
    page.until("document.getElementById('events').innerText.includes('task.completed')", "the filter passes it")
    page.holds("!document.getElementById('events').innerText.includes('task.started')", "the filter holds the others back")

    page.run("location.hash = '#/dead-letters/billing'")
    page.until("document.querySelectorAll('.letter').length === 2", "dead letters are listed")
    page.holds("document.querySelector('.letter').innerText.includes('the account has no address')", "with their reasons")
    page.run("document.querySelector('.letter button').click()")
    page.until("document.querySelectorAll('.letter').length === 1", "one is delivered again")
    assert len(server.ask("/dead-letters?group=billing")["dead_letters"]) == 1

    task = server.submit("Narrow " + "w" * 400)
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    for view in ("#/tasks", f"#/tasks/{task}", "#/arms", "#/events", "#/dead-letters/billing"):
        page.run(f"location.hash = '{view}'")
        page.is_live()
        page.is_sound()
    page.run("document.getElementById('theme').click()")
    page.holds("document.documentElement.dataset.theme === 'light'", "the theme is switched")
    page.end()


def check_many(browser, server, proxy):
    """More tasks than a page has."""
    first = server.submit("The first of many")
    for number in range(60):
        server.submit(f"hold {number}")
    page = Dashboard(browser, proxy.url + PREFIX)
    page.until("document.querySelectorAll('#tasks li').length === 50", "a page of tasks is listed")
    page.holds(f"!{page.row(first)}", "the first one is on the next page")
    page.run("document.getElementById('older').click()")
    page.until(page.row(first), "older tasks are listed at request")
    page.run("const box = document.getElementById('task-filter'); box.value = 'first of many'; box.dispatchEvent(new Event('input'))")
    page.holds("document.querySelectorAll('#tasks li').length === 1", "the filter leaves one")
    page.end()


def check_tokens(browser, examples, folder):
    key = folder / "desk.pem"
    server = Server(examples / "dashboard", "--key", str(key))
    try:
        def token(subject, scope, audience="desk"):
            words = [examples / "token", "issue", "--key", key, "--issuer", "desk", "--subject", subject, "--audience", audience, "--scope", scope]
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

        proxy = Proxy(server.port)
        ali, bea = token("ali", "task:run events.task:subscribe"), token("bea", "task:run events.task:subscribe events:admin")
        own, others = server.submit("Of ali", ali), server.submit("Of bea", bea)
        page = Dashboard(browser, proxy.url + PREFIX)
        page.until("document.getElementById('ask').open", "a token is asked for")
        page.holds("document.activeElement.id === 'ask-token'", "the field has the focus")
        for wrong in ("nonsense", token("ali", "task:run", "another")):
            page.type(wrong)
            page.key("Enter")
            page.until("document.getElementById('ask').open && document.getElementById('ask-bad').textContent.includes('refused')", "a wrong token is refused, and another one asked for")
            page.run("document.getElementById('ask-bad').textContent = ''")
        page.holds("sessionStorage.length === 0", "a wrong token is forgotten")
        page.type(ali)
        page.key("Enter")
        page.until(page.row(own), "the tasks of the caller are displayed")
        page.holds(f"!{page.row(others)}", "those of others are not")
        page.holds("!document.body.innerText.includes('Of bea')", "nothing is said of them")
        page.holds("document.querySelector('#views [href=\"#/dead-letters\"]').hidden", "without the scope there are no dead letters")
        page.holds(f"sessionStorage.getItem('octollm.token') === {json.dumps(ali)} && !document.documentElement.outerHTML.includes({json.dumps(ali)})", "the token is in the session alone")
        page.run(f"location.hash = '#/tasks/{others}'")
        page.until("document.getElementById('detail').innerText.includes('There is no such task')", "the task of another caller is not there")
        page.run("location.hash = '#/events'")
        page.until("document.getElementById('pattern').value === 'events:task:*'", "the events of tasks are followed")
        page.is_live()
        later = server.submit("Later, of bea", bea)
        mine = server.submit("Later, of ali", ali)
        page.until(f"document.getElementById('events').innerText.includes('{mine}')", "the own events appear")
        page.holds(f"!document.getElementById('events').innerText.includes('{later}')", "those of others do not")
        page.run("document.getElementById('token').click()")
        page.type(bea)
        page.key("Enter")
        page.run("location.hash = '#/tasks'")
        page.until(page.row(others), "the next caller has its own tasks")
        page.holds(f"!{page.row(own)} && !document.body.innerText.includes('Of ali')", "and none of the one before")
        page.holds("!document.querySelector('#views [href=\"#/dead-letters\"]').hidden", "with the scope there are dead letters")
        page.run(f"location.hash = '#/tasks/{server.submit('hold', bea)}'")
        page.until("document.querySelector('#detail .danger')", "it can be cancelled")
        page.run("document.querySelector('#detail .danger').click(); document.querySelector('#detail .danger').click()")
        page.until("document.querySelector('#detail .pill.cancelled')", "it is cancelled by its owner")
        changes = [event["params"]["request"] for event in page.events() if event["method"] == "Network.requestWillBeSent" and event["params"]["request"]["method"] != "GET"]
        sent = [{name.lower(): value for name, value in one["headers"].items()} for one in changes]
        assert sent and all(one.get("authorization") == f"Bearer {bea}" and "cookie" not in one for one in sent), sent
        page.run("document.getElementById('token').click()")
        page.type(token("cleo", "text:read"))
        page.key("Enter")
        page.run("location.hash = '#/tasks'")
        page.until("document.getElementById('tasks').children.length === 0", "a caller without the scope sees no tasks")
        page.end(refused=(401, 403, 404))
    finally:
        server.kill()


def draw(browser, server, folder):
    """What the page looks like after a minute of work."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = [
        ("dashboard_light", "", 1340, 840, False), ("dashboard_dark", "", 1340, 840, True), ("dashboard_phone", "", 390, 844, False),
        ("dashboard_arms", "#/arms", 1200, 420, True), ("dashboard_events", "#/events", 1200, 640, False),
    ]
    # Each at an origin of its own: a browser has six connections to one.
    drawn = [(name, Dashboard(browser, Proxy(server.port).url + PREFIX, *rest)) for name, *rest in pages]
    time.sleep(100)
    for name, page in drawn:
        page.send("Emulation.setScrollbarsHidden", hidden=True)
        if name in ("dashboard_light", "dashboard_dark"):
            # One that has just begun to write.
            page.until("[...document.querySelectorAll('#tasks .task.processing .say')].some((one) => one.textContent === 'writing')", "a task writes")
            page.run("[...document.querySelectorAll('#tasks .task.processing')].find((one) => one.innerText.includes('writing')).querySelector('a').click()")
            page.until("document.querySelector('#detail .stream')?.textContent.length > 260", "words arrive")
        if name == "dashboard_phone":
            page.run("document.querySelector('#tasks .completed a').click()")
            page.until("document.querySelectorAll('.call').length === 5", "its calls are there")
        page.picture(folder / f"{name}.png")


def main():
    program, examples, folder, *words = sys.argv[1:]
    examples, folder = pathlib.Path(examples).absolute(), pathlib.Path(folder)
    browser = Browser(program, str(folder / "profile"))
    servers = []

    def start(*words):
        servers.append(Server(examples / "dashboard", *words))
        return servers[-1]

    try:
        version = browser.send("Browser.getVersion")["product"]
        if words[:1] == ["--pictures"]:
            return draw(browser, start(), pathlib.Path(words[1]))
        is_short = words == ["--short"]
        server = start("--quiet")
        proxy = Proxy(server.port)
        check_tasks(browser, server, proxy)
        check_views(browser, server, proxy)
        check_lost(browser, server, proxy, None if is_short else lambda: start("--quiet"))
        if not is_short:
            server = start("--quiet")
            check_many(browser, server, Proxy(server.port))
            check_tokens(browser, examples, folder)
        print(f"{version} displays tasks, arms, events and dead letters, and follows them")
    finally:
        browser.close()
        for server in servers:
            server.kill()


main()
