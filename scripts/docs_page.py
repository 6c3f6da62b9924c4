"""Drives the page at /docs in a browser, for docs_page.sh.

docs_page.py CHROMIUM PROFILE [--pictures DIR] NAME=URL..   with the token of `secure` in the environment as TOKEN

The browser is driven by its DevTools protocol over two pipes. On every page: the operations of the document are displayed, no request goes to
another origin, nothing violates the content security policy, and the console has no error.
"""

import base64
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request
from urllib.parse import urlsplit

from browser import Browser, Page


class Docs(Page):
    def __init__(self, browser, url, width=1280, height=900, dark=False):
        media = {"prefers-color-scheme": "dark" if dark else "light"}
        super().__init__(browser, url, "/docs", "document.querySelectorAll('.op').length > 0", width, height, media)

    def attempt(self, operation, body=None, **fields):
        """Opens an operation, fills its form, sends it, and returns what the page shows."""
        where = f"document.getElementById({json.dumps('op-' + operation)})"
        self.run(f"{where}.open = true")
        self.until(f"{where}.querySelector('form')", "it has a form")
        self.run(f"{where}.querySelectorAll('form details').forEach((one) => one.open = true)")
        self.until(f"!{where}.querySelector('form details') || {where}.querySelector('form details input')", "it has fields for headers")
        fill = "(box, value) => {{ box.value = value; box.dispatchEvent(new Event('input', {{ bubbles: true }})); }}".replace("{{", "{").replace("}}", "}")
        if body is not None:
            self.run(f"({fill})({where}.querySelector('textarea'), {json.dumps(body)})")
        for name, value in fields.items():
            self.run(f"({fill})({where}.querySelector('[data-name={json.dumps(name)}]'), {json.dumps(value)})")
        self.run(f"{where}.querySelector('.result').replaceChildren(); {where}.querySelector('form').requestSubmit()")
        self.until(f"{where}.querySelector('.result .status, .result .bad')", f"{operation} is answered")
        return self.run(f"{where}.querySelector('.result').innerText")

    def token(self, token):
        self.run(f"(() => {{ const box = document.getElementById('token'); box.value = {json.dumps(token)}; box.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()")

    def picture(self, folder, name):
        # Once more, so that what was scrolled to is drawn.
        data = self.send("Page.captureScreenshot", format="png")["data"]
        (folder / f"{name}.png").write_bytes(base64.b64decode(data))

    def end(self, refused=()):
        """Nothing went elsewhere, nothing was blocked, nothing was wrong but the answers that are listed."""
        asked = {event["params"]["request"]["url"] for event in self.events() if event["method"] == "Network.requestWillBeSent"}
        assert {f"{self.url}/docs", f"{self.url}/openapi.json"} <= asked, asked
        # The browser logs every answer from 400 on.
        self.ends_well("{0.scheme}://{0.netloc}".format(urlsplit(self.url)), lambda words: any(f"status of {status}" in words for status in refused))



def document(url):
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        return json.load(answer)


def is_displayed(page, url):
    """Every operation of the document is there once, with its path and its scope, opened and closed."""
    found = document(url)
    operations = [(path, method, one) for path, item in found["paths"].items() for method, one in item.items()]
    ids = page.run("[...document.querySelectorAll('.op[id]')].map((one) => decodeURIComponent(one.id.slice(3)))")
    assert sorted(ids) == sorted(one["operationId"] for _, _, one in operations), ids
    page.run("document.querySelectorAll('.op').forEach((one) => one.open = true)")
    page.until("[...document.querySelectorAll('.op[id]')].every((one) => one.querySelector('form'))", "all of them are opened")
    page.run("document.querySelectorAll('.op .body > div:first-child details').forEach((one) => one.open = true)")
    page.until("[...document.querySelectorAll('.op .body > div:first-child > details')].every((one) => one.dataset.filled)", "all of them are filled")
    for path, method, one in operations:
        shown = page.run(f"document.getElementById({json.dumps('op-' + one['operationId'])}).innerText")
        statuses = ["other" if status == "default" else status for status in one["responses"]]
        expected = [path, method.upper(), *statuses, one.get("x-octollm-scope", ""), one.get("x-octollm-contract", ""), *one.get("x-octollm-examples", [])]
        for words in expected:
            assert words.lower() in shown.lower(), f"{url}: {one['operationId']} is displayed without {words}: {shown[:1500]}"
    # Every control has a name for readers of the screen.
    page.holds("[...document.querySelectorAll('input, textarea')].every((one) => one.labels.length)", "every field has a label")
    page.holds("[...document.querySelectorAll('button, summary, a')].every((one) => one.textContent.trim())", "every control has a name")
    page.holds("document.documentElement.scrollWidth <= innerWidth", "nothing is wider than the window")
    page.holds("new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size === document.querySelectorAll('[id]').length", "no id is there twice")
    return len(operations)


def check(browser, urls, pictures):
    count = 0
    page = Docs(browser, urls["arm"])
    count += is_displayed(page, urls["arm"])
    shown = page.run("document.getElementById('op-text.count').innerText")
    for words in ("1 to 40 characters", "at most 3 items", "2 to 8 characters", "0 to 1", '"folded"', "without other members", "required", "422", "validation_failed", "Retry-After", "30 s"):
        assert words in shown, f"text.count is displayed without {words}: {shown}"
    shown = page.run("document.getElementById('op-shape.measure').innerText + document.getElementById('op-shape.measure.v2').innerText")
    for words in ("deprecated", "Area of a shape", "geometry", "How large is a square", "cached 10 s", "it only reads", "square", "rectangle"):
        assert words in shown, f"shape.measure is displayed without {words}: {shown}"
    shown = page.run("document.getElementById('op-rules.try').innerText")
    for words in ("matches ^a", "matches b$", "4 forms or null", "array of 2: integer (uint8), integer (int16) or null"):
        assert words in shown, f"rules.try is displayed without {words}: {shown}"
    answer = page.attempt("text.count", '{"text": "ten arms", "without": []}', **{"X-Request-ID": "from-the-page"})
    assert "200" in answer and '"words": 2' in answer, answer
    page.run("document.querySelector('[id=\"op-text.count\"] .result details').open = true")
    page.until("document.querySelector('[id=\"op-text.count\"] .result').innerText.includes('x-request-id: from-the-page')", "the headers are displayed")
    curl = page.run("[...document.querySelectorAll('[id=\"op-text.count\"] .try pre')].at(-1).textContent")
    done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["words"] == 2, (curl, done)
    assert "422" in (answer := page.attempt("text.count", '{"text": "", "without": []}')) and "validation_failed" in answer, answer
    assert "400" in (answer := page.attempt("text.count", "it's no JSON")), answer
    page.holds("document.querySelector('[id=\"op-text.count\"] .bad').textContent.includes('not JSON')", "it is marked")
    # What the form begins with fits the contract, where only its types and rules matter.
    for name in ("text.count", "shape.measure", "shape.measure.v2", "name.check", "tree.list", "rules.try"):
        made = Docs(browser, urls["arm"])
        assert "200" in (answer := made.attempt(name)), f"{name}: {answer}"
        made.end()
    page.run("const box = document.getElementById('filter'); box.value = 'measure shape'; box.dispatchEvent(new Event('input'))")
    page.holds("[...document.querySelectorAll('.op:not([hidden])')].map((one) => one.id).join() === 'op-shape.measure,op-shape.measure.v2'", "the filter leaves two")
    page.end(refused=(422, 400))

    page = Docs(browser, urls["orchestrator"])
    count += is_displayed(page, urls["orchestrator"])
    assert "202" in (answer := page.attempt("submitTask", '{"goal": "Count to ten."}')), answer
    task = answer.split('"task_id": "')[1].split('"')[0]
    assert "200" in (answer := page.attempt("getTask", id=task)) and task in answer, answer
    assert "200" in page.attempt("listTasks", limit="1")
    page.until("document.querySelector('section[aria-label=arms] .op')", "it lists the arms")
    page.run("document.querySelectorAll('section[aria-label=arms] details').forEach((one) => one.open = true)")
    page.until("document.querySelector('section[aria-label=arms]').innerText.includes('1 to 40 characters')", "it displays their contracts")
    page.end()

    page = Docs(browser, urls["reflex"])
    count += is_displayed(page, urls["reflex"])
    assert "should_proceed" in page.attempt("preprocess", '{"input_text": "hello"}')
    page.end()

    page = Docs(browser, urls["secure"])
    count += is_displayed(page, urls["secure"])
    good = '{"text": "ten arms", "without": []}'
    assert "401" in page.attempt("text.count", good)
    assert "401" in page.attempt("metrics")
    page.token(os.environ["TOKEN"])
    assert '"words": 2' in page.attempt("text.count", good)
    curl = page.run("[...document.querySelectorAll('[id=\"op-text.count\"] .try pre')].at(-1).textContent")
    assert "$TOKEN" in curl and os.environ["TOKEN"] not in curl, curl
    assert "403" in page.attempt("name.check", '{"name": "ali"}')
    page.holds("localStorage.length + sessionStorage.length === 0 && document.cookie === ''", "the token is in memory only")
    page.holds(f"!document.documentElement.outerHTML.includes({json.dumps(os.environ['TOKEN'])})", "the token is not in the markup")
    page.end(refused=(401, 403))

    page = Docs(browser, urls["hostile"])
    count += is_displayed(page, urls["hostile"])
    text = "<img src=x onerror=\"document.title = 'injected'\"><script>document.title = 'injected'</script>"
    answer = page.attempt("text.repeat", json.dumps({'"><img src=x onerror=alert(1)>': text}))
    assert "200" in answer and "<img src=x" in answer and "18446744073709551615" in answer, answer
    page.holds("document.title === 'Hostile'", "no text became a script")
    page.holds("document.querySelectorAll('img, svg, iframe, object, embed, main script, nav script, .op b[onmouseover]').length === 0", "no text became markup")
    for words in ("<script>alert(1)</script>", "<b onmouseover=alert(1)>Repeat</b>", '"><svg onload=alert(1)>'):
        page.holds(f"document.body.innerText.includes({json.dumps(words)})", f"{words} is displayed as text")
    page.end()

    page = Docs(browser, urls["mounted"], 390, 844)
    count += is_displayed(page, urls["mounted"])
    assert '"words": 2' in page.attempt("text.count", good)
    page.holds("document.querySelector('[id=\"op-text.count\"] .try').innerText.includes('/arms/worker/count')", "the command has the prefix")
    page.end()
    if pictures:
        draw(browser, urls, pictures)
    return count


def draw(browser, urls, folder):
    folder.mkdir(parents=True, exist_ok=True)
    good = '{"text": "ten arms, one brain", "without": ["brain"], "options": {"case": "folded", "labels": {}}}'
    for name, server, operation, body, width, height, dark in (
        ("arm_light", "arm", "text.count", good, 1400, 1500, False),
        ("arm_dark", "arm", "text.count", good, 1400, 1500, True),
        ("arm_phone", "arm", "text.count", good, 390, 2600, False),
        ("forms_light", "arm", "rules.try", None, 1400, 2200, False),
        ("orchestrator_dark", "orchestrator", "submitTask", '{"goal": "Count to ten."}', 1400, 1500, True),
        ("secure_light", "secure", "name.check", '{"name": "ali"}', 1100, 1300, False),
        ("hostile_light", "hostile", "text.repeat", '{"\\"><img src=x onerror=alert(1)>": "<script>"}', 1400, 1300, False),
    ):
        page = Docs(browser, urls[server], width, height, dark)
        page.attempt(operation, body)
        page.run("document.querySelectorAll('form details').forEach((one) => one.open = false); scrollTo(0, 0)")
        time.sleep(0.5)
        page.picture(folder, name)
        browser.send("Target.closeTarget", targetId=page.target)


def main():
    program, profile, *words = sys.argv[1:]
    pictures = pathlib.Path(words[1]) if words[:1] == ["--pictures"] else None
    urls = dict(word.split("=", 1) for word in words if "=" in word)
    browser = Browser(program, profile)
    try:
        version = browser.send("Browser.getVersion")["product"]
        count = check(browser, urls, pictures)
        print(f"{version} displays {count} operations of {len(urls)} servers, and calls them")
    finally:
        browser.close()


main()
