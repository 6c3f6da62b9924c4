"""Issues and verifies tokens with PyJWT, for interop_tokens.sh.

keys DIR                        a private key of each algorithm as DIR/ALG.pem, and a secret as DIR/HS256.jwk
issue DIR ALG                   prints a token, and writes the public JWK set to DIR/ALG.pyjwt.jwks
verify DIR ALG < TOKEN          verifies it with the set DIR/ALG.ours.jwks, or with the secret
"""

import base64
import json
import pathlib
import secrets
import sys
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

CLAIMS = {"iss": "brain", "sub": "ali", "aud": "judge", "jti": "t1", "scope": "code:validate"}


def keys(folder):
    made = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    for name, key in made.items():
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (folder / f"{name}.pem").write_bytes(pem)
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    (folder / "HS256.jwk").write_text(json.dumps({"kty": "oct", "k": secret, "kid": "k1"}))


def secret_of(folder):
    return jwt.PyJWK(json.loads((folder / "HS256.jwk").read_text()), "HS256").key


def issue(folder, name):
    if name == "HS256":
        key = secret_of(folder)
    else:
        key = serialization.load_pem_private_key((folder / f"{name}.pem").read_bytes(), None)
        public = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
        public |= {"kid": "k1", "alg": name, "use": "sig"}
        (folder / f"{name}.pyjwt.jwks").write_text(json.dumps({"keys": [public]}))
    now = int(time.time())
    head = {"typ": "at+jwt", "kid": "k1"}
    print(jwt.encode(CLAIMS | {"iat": now, "exp": now + 300}, key, name, head))


def verify(folder, name):
    token = sys.stdin.read().strip()
    head = jwt.get_unverified_header(token)
    assert head["typ"] == "at+jwt" and head["alg"] == name, head
    if name == "HS256":
        key = secret_of(folder)
    else:
        key = jwt.PyJWKSet.from_json((folder / f"{name}.ours.jwks").read_text())[head["kid"]].key
    need = ["iss", "sub", "aud", "exp", "iat", "jti", "scope"]
    claims = jwt.decode(token, key, [name], audience="judge", issuer="brain", options={"require": need})
    assert (claims["sub"], claims["scope"]) == ("ali", "code:validate"), claims


command, folder, *name = sys.argv[1:]
{"keys": keys, "issue": issue, "verify": verify}[command](pathlib.Path(folder), *name)
