"""Corrects what schemathesis sends where it is not what its own reading of the document calls for, and adds tokens.

With FUZZ_KEY, the PEM file of the key of the issuer `fuzz`, each request has a valid token for the arm `secure`. Each kind of request that is
answered with one is sent again with tokens that are not valid, and with none.
"""

import atexit
import base64
import collections
import json
import os
import pathlib
import sys
import time
import urllib.request

import requests
import schemathesis
from schemathesis.core.parameters import ParameterLocation

# Fields whose form needs characters that the coverage phase never puts into a header: it leaves them empty.
FORMED = ("Idempotency-Key", "Octollm-Budget")


@schemathesis.hook
def before_call(context, case, kwargs):
    # schemathesis judges a case by what it holds only after an assignment.
    case.body = case.body
    head = case.meta and case.meta.components.get(ParameterLocation.HEADER)
    undeclared = case.method.upper() != case.operation.method.upper()
    # A request without its token has everything else that it needs: a time that has not passed, too.
    without_token = getattr(case.meta and case.meta.phase.data, "parameter", None) == "Authorization"
    if head and (head.mode.is_positive or undeclared or without_token):
        for name in FORMED:
            if case.headers.get(name) == "":
                del case.headers[name]
    if without_token and case.headers.get("Octollm-Timeout") == "0":
        del case.headers["Octollm-Timeout"]
    # No schema says that a start is not too far ahead, nor after the end of a grant.
    if isinstance(case.body, dict):
        if isinstance(case.body.get("run_at"), str) and case.body["run_at"][:4] > "2025":
            case.body = case.body | {"run_at": "2025" + case.body["run_at"][4:].replace("02-29", "02-28")}
        seconds = case.body.get("run_in_seconds")
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 3600 < seconds <= 315_360_000:
            case.body = case.body | {"run_in_seconds": 3600}


class Issuer:
    """Tokens of the issuer whose keys a server publishes."""

    def __init__(self, file):
        import jwt  # Only with tokens.
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.encode = jwt.encode
        self.key = load_pem_private_key(pathlib.Path(file).read_bytes(), None)
        self.other = ed25519.Ed25519PrivateKey.generate()
        with urllib.request.urlopen(os.environ["FUZZ_JWKS"]) as answer:
            self.kid = json.load(answer)["keys"][0]["kid"]

    def token(self, key=None, typ="at+jwt", kid=None, **changed):
        now = int(time.time())
        claims = {
            "iss": "fuzz", "sub": "ali", "aud": "secure", "jti": "t1", "iat": now, "exp": now + 300,
            "scope": "text:count name:check task:run metrics:read",
        }
        claims |= changed
        return self.encode(claims, key or self.key, "EdDSA", {"typ": typ, "kid": kid or self.kid})

    def refused(self):
        """Values of `Authorization` that are refused, with the status and the reason."""
        now, good = int(time.time()), self.token()
        head, claims, signature = good.split(".")
        nothing = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "at+jwt", "kid": self.kid}).encode()).rstrip(b"=").decode()
        yield 401, "no token", None
        yield 401, "expired", f"Bearer {self.token(iat=now - 400, exp=now - 100)}"
        yield 401, "not valid yet", f"Bearer {self.token(nbf=now + 100)}"
        yield 401, "lives too long", f"Bearer {self.token(exp=now + 3600)}"
        yield 401, "of another arm", f"Bearer {self.token(aud='judge')}"
        yield 401, "of another issuer", f"Bearer {self.token(iss='other')}"
        yield 401, "with another key", f"Bearer {self.token(key=self.other)}"
        yield 401, "with an unknown key", f"Bearer {self.token(key=self.other, kid='unknown')}"
        yield 401, "of another type", f"Bearer {self.token(typ='JWT')}"
        yield 401, "not signed", f"Bearer {nothing}.{claims}."
        yield 401, "changed", f"Bearer {head}.{claims}.{signature[::-1]}"
        yield 401, "with another scheme", f"Basic {good}"
        yield 403, "of other scopes", f"Bearer {self.token(scope='text:look image:*')}"


if "FUZZ_KEY" in os.environ:
    issuer = Issuer(os.environ["FUZZ_KEY"])
    # By operation: the requests that were sent again. A few of each kind show it as well as all of them.
    again = collections.Counter()
    ENOUGH = 12

    @schemathesis.auth(refresh_interval=60)
    class Tokens:
        def get(self, case, context):
            return issuer.token()

        def set(self, case, token, context):
            if case.operation.definition.raw.get("security"):
                case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}

    @schemathesis.check
    def tokens_that_are_not_valid_are_refused(ctx, response, case):
        """Holds for every operation that needs a token."""
        operation = case.operation.definition.raw
        if not operation.get("security") or not 200 <= response.status_code < 300 or again[case.operation.label] >= ENOUGH:
            return
        again[case.operation.label] += 1
        sent = response.request
        for status, reason, value in issuer.refused():
            head = {name: field for name, field in sent.headers.items() if name.lower() != "authorization"}
            if value is not None:
                head["Authorization"] = value
            answer = requests.request(sent.method, sent.url, headers=head, data=sent.body, timeout=10)
            if status == 403 and operation["operationId"] == "listTasks":
                # A list leaves out what the caller may not see.
                assert answer.status_code == 200 and answer.json()["tasks"] == [], f"a token {reason}: {answer.text}"
                continue
            assert answer.status_code == status, f"a token {reason} was answered with {answer.status_code} instead of {status}: {answer.text[:300]}"
            assert answer.headers.get("WWW-Authenticate", "").startswith("Bearer"), f"a token {reason}: no challenge"
            assert answer.json()["code"] == ("unauthenticated" if status == 401 else "insufficient_scope"), answer.text[:300]

    @atexit.register
    def report():
        kinds = len(list(issuer.refused()))
        print(f"tokens: {sum(again.values())} requests of {len(again)} operations were sent again, each with {kinds} that are not valid", file=sys.stderr)
